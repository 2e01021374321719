"""Predictions from a folder alone; the model is random but lively, so that every input answers otherwise."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from teachers import byte_tokenizer
from tiny import MINILM

from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.errors import UserError
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert_dist.predictor import Predictor, TextPair, parse_lines
from refbert_dist.references.bank import ReferenceBank
from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.search import joined

WIDTH = 24
MAX_LENGTH = 40


def sentences(count: int) -> list[str]:
    found = (text for document in python_docs_documents() for text in document.split(". "))
    return [
        text for text, _ in zip((text for text in found if 6 <= len(text.split()) <= 25), range(count), strict=False)
    ]


SINGLES: list[TextPair] = [(text, None) for text in sentences(30)]
PAIRS: list[TextPair] = list(zip(sentences(60)[:30], sentences(60)[30:], strict=True))


def config(**fields: object) -> RefBertConfig:
    return RefBertConfig(
        **{
            "vocab_size": 30522,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "reference_size": 32,
            "reference_count": 2,
            "initializer_range": 0.3,
            **fields,
        }
    )


def exported(folder: Path, pool: list[TextPair], **fields: object) -> Path:
    """As the export stage leaves it, without a training before."""
    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config(**fields))
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(MINILM)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    if model.config.reference_count:
        rng = np.random.default_rng(0)
        lengths = rng.integers(3, 12, size=len(pool))
        states = [[rng.normal(size=(length, WIDTH)) for length in lengths] for _ in range(2)]
        ReferenceBank.write(
            folder / "bank",
            pool,
            np.arange(len(pool)),
            *states,
            count=model.config.reference_count,
            retriever=Bm25.build([joined(text) for text in pool], "english"),
            left_out=[3],
        )
    return folder


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(exported(tmp_path_factory.mktemp("singles"), SINGLES[:20]), device="cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(exported(tmp_path_factory.mktemp("pairs"), PAIRS[:20], num_labels=3), device="cpu")


def by_hand(predictor: Predictor, text: TextPair) -> tuple[list[float], list[int]]:
    """One input alone, through the public parts."""
    encoded = predictor.tokenizer(
        text[0], text[1], truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt"
    )
    assert predictor.bank is not None
    rows = predictor.bank.lookup([text])
    keys, values, mask = (torch.from_numpy(array) for array in predictor.bank.gather(rows))
    with torch.no_grad():
        logits = predictor.model(
            **encoded, reference_keys=keys, reference_values=values, reference_mask=mask, references_projected=True
        ).logits[0]
    return logits.softmax(-1).tolist(), [row for row in rows[0].tolist() if row >= 0]


@pytest.mark.parametrize("kind", ["singles", "pairs"])
def test_answers_are_the_models_with_its_references(kind: str, request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(kind)
    texts = {"singles": SINGLES, "pairs": PAIRS}[kind][15:]
    answers = predictor(texts)
    for text, answer in zip(texts, answers, strict=True):
        probabilities, references = by_hand(predictor, text)
        assert answer["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert answer["label"] == int(np.argmax(probabilities))
        assert answer["references"] == references
    assert np.ptp([answer["probabilities"][0] for answer in answers]) > 0.05
    known = [answer["references"] for answer in answers[:5]]
    assert all(row not in rows and 3 not in rows for row, rows in zip(range(15, 20), known, strict=True))


def test_the_references_matter_to_the_answer(singles: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = np.array([answer["probabilities"] for answer in singles(SINGLES)])
    monkeypatch.setattr(singles.bank, "lookup", lambda texts: np.full((len(texts), 2), -1))
    without = singles(SINGLES)
    assert all(answer["references"] == [] for answer in without)
    assert np.abs(np.array([answer["probabilities"] for answer in without]) - before).max() > 1e-3


@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_batch_size_does_not_change_answers(pairs: Predictor, size: int) -> None:
    whole = list(pairs.stream(iter(PAIRS), batch_size=30))
    for one, other in zip(whole, pairs.stream(iter(PAIRS), batch_size=size), strict=True):
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
        assert (other["label"], other["references"]) == (one["label"], one["references"])


def test_a_stream_answers_before_its_input_ends(singles: Predictor) -> None:
    taken = 0

    def endless() -> Iterator[TextPair]:
        nonlocal taken
        while True:
            taken += 1
            yield SINGLES[taken % 30]

    stream = singles.stream(endless(), batch_size=4)
    for _ in range(5):
        next(stream)
    assert taken == 8


def test_a_text_of_a_hundred_thousand_words_is_cut(singles: Predictor, pairs: Predictor) -> None:
    long = " ".join([SINGLES[25][0], *["further words that go on"] * 20_000])
    assert len(long.split()) > 100_000
    (answer,) = singles([(long, None)])
    # What lies beyond the first tokens is not read by the network; the lookup sees it, so its rows are given.
    rows = np.array([answer["references"]])
    assert singles.bank is not None
    keys, values, mask = (torch.from_numpy(array) for array in singles.bank.gather(rows))
    ids = singles.tokenizer(long)["input_ids"]
    cut = torch.tensor([[*ids[: MAX_LENGTH - 1], ids[-1]]])
    with torch.no_grad():
        logits = singles.model(
            cut, reference_keys=keys, reference_values=values, reference_mask=mask, references_projected=True
        ).logits[0]
    assert answer["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    assert np.isfinite(pairs([(long, "short")])[0]["probabilities"]).all()


def test_a_regressor_gives_scores(tmp_path: Path) -> None:
    predictor = Predictor(exported(tmp_path, PAIRS[:20], num_labels=1), device="cpu")
    answers = predictor(PAIRS[20:])
    assert all(answer.keys() == {"score", "references"} and isinstance(answer["score"], float) for answer in answers)
    assert np.ptp([answer["score"] for answer in answers]) > 0.05


def test_a_model_without_references_needs_no_bank(tmp_path: Path) -> None:
    predictor = Predictor(exported(tmp_path, [], reference_count=0), device="cpu")
    assert predictor.bank is None
    assert predictor(SINGLES[:1])[0].keys() == {"label", "probabilities"}


def test_a_tokenizer_that_gives_no_token_types(tmp_path: Path) -> None:
    """RoBERTa's, for one; the student learned with types that are all zero."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(tmp_path)
    model = RefBertForSequenceClassification(config(vocab_size=len(tokenizer), reference_count=0, pad_token_id=1))
    model.save_pretrained(tmp_path)
    assert "token_type_ids" not in tokenizer("a", "b")
    answers = Predictor(tmp_path, device="cpu")(PAIRS[:3])
    for (first, second), answer in zip(PAIRS[:3], answers, strict=True):
        encoded = tokenizer(first, second, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            expected = model.eval()(**encoded).logits[0].softmax(-1).tolist()
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_odd_texts_and_none_at_all(singles: Predictor) -> None:
    assert singles([]) == [] and list(singles.stream([])) == []
    answers = singles([("", None), ("🎉 \u200b ünïcode", None), ("?!", None)])
    assert all(np.isfinite(answer["probabilities"]).all() for answer in answers)


def test_texts_and_pairs_together_are_refused(singles: Predictor) -> None:
    for texts in ([("a", None), ("a", "b")], [("a", "b"), ("a", None)]):
        with pytest.raises(UserError, match="some texts are pairs and some are not"):
            singles(texts)  # type: ignore[arg-type]


def test_folders_that_hold_no_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json.*RUN_DIR/export"):
        Predictor(tmp_path)
    RefBertModel(config()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds an encoder without a head"):
        Predictor(tmp_path)


# -- lines -----------------------------------------------------------------------------------------------------------


def test_lines_are_texts_or_pairs() -> None:
    assert list(parse_lines(["one text\n", "another\r\n", "last"])) == [
        ("one text", None),
        ("another", None),
        ("last", None),
    ]
    assert list(parse_lines(["a\tb\n", "c \t\n"])) == [("a", "b"), ("c ", "")]
    assert list(parse_lines([])) == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\n", "a\tb\n"], "line 2 has 2 tab-separated texts, expected 1"),
        (["a\tb\n", "c\td\n", "a\n"], "line 3 has 1 tab-separated texts, expected 2"),
        (["a\tb\tc\n"], "line 1 has 3 tab-separated texts, expected 2"),
        (["a\n", "\n"], "line 2 is empty"),
        ([" \t \n"], "line 1 is empty"),
    ],
)
def test_lines_that_are_wrong_are_named(lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(parse_lines(lines))


def test_lines_before_a_wrong_one_are_answered() -> None:
    parsed = parse_lines(["good\n", "\n"])
    assert next(parsed) == ("good", None)
    with pytest.raises(UserError, match="line 2"):
        next(parsed)


def test_what_is_not_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"bad \xff\n")
    with path.open(encoding="utf-8") as stream, pytest.raises(UserError, match="not UTF-8"):
        list(parse_lines(stream))
