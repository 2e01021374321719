"""Texts have the length that is asked for, and what is asked is not known."""

from pathlib import Path

import pytest
from tiny import tiny_experiment

from refbert_dist.benchmark.texts import SLACK, batches, benchmark_texts
from refbert_dist.config import BenchmarkConfig
from refbert_dist.data.tokenizer import tokenized
from refbert_dist.errors import UserError

CORPUS = "corpus={path: 'builtin:python-docs'}"


@pytest.mark.parametrize("teacher", ["local", "bert-base-uncased"])
def test_texts_have_their_length_and_inputs_are_none_of_the_known_ones(tmp_path: Path, teacher: str) -> None:
    named = [] if teacher == "local" else [f"teacher.model={teacher}"]
    exp = tiny_experiment(tmp_path, "task=null", CORPUS, *named)
    texts = benchmark_texts(exp, BenchmarkConfig(lengths=(16, 40), pool_texts=50))
    assert len(texts.known) == 50 and set(texts.asked) == {16, 40}
    for length, those in ((16, texts.known), *texts.asked.items()):
        ids, _ = tokenized(texts.tokenizer, those)
        assert {len(row) for row in ids} <= set(range(length - SLACK + 1, length + 1))
    for those in texts.asked.values():
        assert not {text for text, _ in texts.known} & {text for text, _ in those}
    assert texts.task_known == texts.task_asked == []


def test_rows_of_the_task_are_read_as_they_are(tmp_path: Path) -> None:
    texts = benchmark_texts(tiny_experiment(tmp_path, CORPUS), BenchmarkConfig(lengths=(16,)))
    assert (len(texts.task_known), len(texts.task_asked)) == (60, 24)
    assert all(second for _, second in texts.task_known)


def test_a_corpus_without_such_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A few words.\n\nAnd a few more.\n")
    exp = tiny_experiment(tmp_path, "task=null", f"corpus={{path: {path}}}")
    with pytest.raises(UserError, match=r"^benchmark\.lengths asks for texts of 16 tokens, and the corpus has none; "):
        benchmark_texts(exp, BenchmarkConfig(lengths=(16,)))


def test_the_last_batch_is_full() -> None:
    texts = [(word, None) for word in "abcde"]
    assert [[text for text, _ in batch] for batch in batches(texts, 3)] == [["a", "b", "c"], ["d", "e", "a"]]
    assert [[text for text, _ in batch] for batch in batches(texts[:2], 5)] == [["a", "b", "a", "b", "a"]]
