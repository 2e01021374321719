import io
from typing import Any

from rich.console import Console

from launchers.tables import show_neighbours

LABELS = {
    "measure": "share of equal labels",
    "nearest": 0.7787,
    "random": 0.5069,
    "by_length": [{"min_words": 1, "rows": 11757, "nearest": 0.869}],
    "vote": {"k": 8, "measure": "accuracy", "score": 0.81},
}


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
        "label_agreement": LABELS,
        "refused": {"self": 67191, "equal_text": 0, "contains": 371599},
        **changes,
    }


def shown(*manifests: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    show_neighbours(manifests, Console(file=stream, width=width))
    return stream.getvalue()


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_nearest_and_random_stand_side_by_side_within_80_columns() -> None:
    dense = {"retriever": "dense", "layer": 6, "index": "hnsw"}
    text = shown(manifest("train"), manifest("dev", recipe=dense, refused={"self": 0}))
    assert "share of equal labels" in " ".join(text.split())
    rows = rows_of(text)
    assert ["bm25", "train", "67,349", "97.2", "0.307", "0.021"] in rows
    assert any(row[:3] == ["dense(6)", "hnsw", "dev"] for row in rows)
    assert ["bm25", "nearest", "0.779", "-", "0.507"] in rows
    assert ["dense(6)", "hnsw", "nearest", "-", "0.779", "0.507"] in rows
    assert "bm25 train: k=8, 99.9 % have a reference, refused self 67,191, contains 371,599" in text
    assert "dense(6) hnsw dev: k=8, 99.9 % have a reference, refused nothing" in text


def test_labels_of_train_and_held_out_rows_stand_side_by_side() -> None:
    of_dev = LABELS | {"nearest": 0.674, "vote": LABELS["vote"] | {"score": 0.72}}  # type: ignore[operator]
    words = {"retriever": "bm25", "stop_words": "none"}
    text = shown(manifest("train", recipe=words), manifest("dev", recipe=words, label_agreement=of_dev, held_out=0.1))
    rows = rows_of(text)
    assert ["retriever", "of", "train", "held-out", "random"] in rows
    assert ["bm25,", "all", "words", "nearest", "0.779", "0.674", "0.507"] in rows
    assert ["1", "to", "2", "words", "0.869", "0.869", "-"] in rows
    assert ["vote", "of", "8,", "accuracy", "0.810", "0.720", "-"] in rows
    assert "mismatch" not in text


def test_a_mismatch_is_said_in_a_sentence() -> None:
    text = shown(manifest("train"), manifest("dev", mismatch={"message": "train rows [are] told more"}))
    assert text.splitlines()[-1] == "mismatch, bm25: train rows [are] told more"
    assert ["retriever", "of", "train", "dev", "random"] in rows_of(text)


def test_a_corpus_has_no_labels() -> None:
    text = shown(manifest("corpus", label_agreement=None))
    assert "label" not in text
    assert "0.307" in text
    beside = shown(manifest("corpus", label_agreement=None), manifest("train"))
    assert ["bm25", "nearest", "0.779", "-", "0.507"] in rows_of(beside)


def test_nothing_found_is_not_a_number() -> None:
    agreement = {"measure": "mean absolute difference", "nearest": None, "random": 1.7}
    text = shown(manifest("dev", label_agreement=agreement))
    assert "mean absolute difference" in " ".join(text.split())
    assert ["bm25", "nearest", "-", "-", "1.700"] in rows_of(text)
