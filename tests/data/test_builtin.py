import subprocess
import sys
from collections import Counter

from refbert_dist.data.builtin import (
    MIN_WORDS,
    python_docs_documents,
    python_docs_fingerprint,
    python_docs_topics,
    same_topic_task,
)


def test_passages_are_prose_and_occur_once() -> None:
    passages = [passage for found in python_docs_topics().values() for passage in found]
    assert len(passages) > 800
    assert len(set(passages)) == len(passages)
    assert all(len(passage.split()) >= MIN_WORDS for passage in passages)
    assert not any("::=" in passage or ">>>" in passage or "\n" in passage for passage in passages)


def test_a_repeated_passage_belongs_to_the_shortest_topic() -> None:
    # "compound" repeats the whole of "while".
    mine = [passage for passage in python_docs_topics()["while"] if "repeatedly tests the expression" in passage]
    assert len(mine) == 1
    assert mine[0] not in python_docs_topics()["compound"]


def test_documents_are_the_topics() -> None:
    documents = list(python_docs_documents())
    assert [document.split("\n") for document in documents] == [list(found) for found in python_docs_topics().values()]


def test_task_has_the_promised_size_and_balance() -> None:
    train, dev = same_topic_task(seed=0)
    assert 1200 <= len(train) <= 2000
    assert 300 <= len(dev) <= 400
    for rows in (train, dev):
        assert Counter(label for _, _, label in rows) == {0: len(rows) // 2, 1: len(rows) // 2}
        assert len({frozenset(row[:2]) for row in rows}) == len(rows)


def test_labels_are_true_and_topics_are_disjoint() -> None:
    topic_of = {passage: topic for topic, found in python_docs_topics().items() for passage in found}
    seen = []
    for rows in same_topic_task(seed=1):
        assert all((topic_of[first] == topic_of[second]) == bool(label) for first, second, label in rows)
        seen.append({topic_of[passage] for row in rows for passage in row[:2]})
    assert seen[0].isdisjoint(seen[1])


def test_word_overlap_alone_does_not_give_the_label() -> None:
    train, _ = same_topic_task(seed=0)
    overlap = {0: [], 1: []}
    for first, second, label in train:
        a, b = set(first.lower().split()), set(second.lower().split())
        overlap[label].append(len(a & b) / len(a | b))
    # Some different-topic pairs share more words than half of the same-topic pairs do.
    median = sorted(overlap[1])[len(overlap[1]) // 2]
    assert sum(value > median for value in overlap[0]) > 0.2 * len(overlap[0])


def test_held_out_topics_are_none_of_train_and_none_of_dev() -> None:
    def passages(rows: list[tuple[str, str, int]]) -> set[str]:
        return {passage for row in rows for passage in row[:2]}

    (_, dev), (less, held) = same_topic_task(3), same_topic_task(3, 0.25)
    assert (passages(less) | passages(held)).isdisjoint(passages(dev))
    assert passages(less).isdisjoint(passages(held))
    assert 0.15 < len(held) / (len(held) + len(less)) <= 0.26


def test_the_same_seed_gives_the_same_rows_in_another_process() -> None:
    program = (
        "from refbert_dist.artifacts import hash_strings\n"
        "from refbert_dist.data.builtin import same_topic_task\n"
        "print(hash_strings(repr(row) for rows in same_topic_task(5) for row in rows))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert same_topic_task(5) != same_topic_task(6)
    assert len(python_docs_fingerprint()) == 32
