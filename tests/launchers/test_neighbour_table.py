import io
from typing import Any

from rich.console import Console

from launchers.tables import show_neighbours


def manifest(part: str, **changes: Any) -> dict[str, Any]:
    return {
        "part": part,
        "recipe": {"retriever": "bm25"},
        "samples": 67349,
        "count": 8,
        "share_with_any": 0.99861,
        "share_with_all": 0.9719,
        "mean_first_overlap": 0.3066,
        "mean_random_overlap": 0.0208,
        "label_agreement": {"measure": "share of equal labels", "nearest": 0.7787, "random": 0.5069},
        "refused": {"self": 67191, "equal_text": 0, "contains": 371599},
        **changes,
    }


def shown(*manifests: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    show_neighbours(manifests, Console(file=stream, width=width))
    return stream.getvalue()


def test_nearest_and_random_stand_side_by_side_within_80_columns() -> None:
    dense = {"retriever": "dense", "layer": 6, "index": "hnsw"}
    text = shown(manifest("train"), manifest("dev", recipe=dense, refused={"self": 0}))
    assert "share of equal labels" in " ".join(text.split())
    rows = [line.split() for line in text.splitlines()]
    assert ["bm25", "train", "67,349", "97.2", "0.307", "0.021", "0.779", "0.507"] in rows
    assert any(row[:3] == ["dense(6)", "hnsw", "dev"] for row in rows)
    assert "bm25 train: k=8, 99.9 % have a reference, refused self 67,191, contains 371,599" in text
    assert "dense(6) hnsw dev: k=8, 99.9 % have a reference, refused nothing" in text


def test_a_corpus_has_no_labels() -> None:
    text = shown(manifest("corpus", label_agreement=None))
    assert "label" not in text
    assert "0.307" in text
    beside = shown(manifest("corpus", label_agreement=None), manifest("train"))
    assert next(line.split() for line in beside.splitlines() if "corpus" in line)[-2:] == ["-", "-"]


def test_nothing_found_is_not_a_number() -> None:
    agreement = {"measure": "mean absolute difference", "nearest": None, "random": 1.7}
    text = shown(manifest("dev", label_agreement=agreement))
    assert "mean absolute difference" in " ".join(text.split())
    assert next(line.split() for line in text.splitlines() if "67,349" in line)[-2:] == ["-", "1.700"]
