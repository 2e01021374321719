"""Predictions from a folder alone; the model is random but lively, so that every input answers otherwise."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import MAX_LENGTH, PAIRS, SINGLES, config, exported, seal
from teachers import byte_tokenizer

from refbert_dist.errors import RefusedError, UserError
from refbert_dist.inference.pipeline import SORTED_BATCHES, RefBertPipeline
from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification, RefBertModel
from refbert_dist.references.guards import TextPair


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> RefBertPipeline:
    return RefBertPipeline(exported(tmp_path_factory.mktemp("singles"), SINGLES[:20]), device="cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> RefBertPipeline:
    return RefBertPipeline(exported(tmp_path_factory.mktemp("pairs"), PAIRS[:20], num_labels=3), device="cpu")


def by_hand(pipeline: RefBertPipeline, text: TextPair) -> tuple[list[float], list[int]]:
    """One input alone, through the public parts."""
    encoded = pipeline.tokenizer(
        text[0], text[1], truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt"
    )
    assert pipeline.bank is not None
    rows = pipeline.bank.lookup([text])
    keys, values, mask = (torch.from_numpy(array) for array in pipeline.bank.gather(rows))
    with torch.no_grad():
        logits = pipeline.network.model(
            **encoded, reference_keys=keys, reference_values=values, reference_mask=mask, references_projected=True
        ).logits[0]
    return logits.softmax(-1).tolist(), [row for row in rows[0].tolist() if row >= 0]


@pytest.mark.parametrize("kind", ["singles", "pairs"])
def test_answers_are_the_models_with_its_references(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline: RefBertPipeline = request.getfixturevalue(kind)
    texts = {"singles": SINGLES, "pairs": PAIRS}[kind][15:]
    answers = pipeline(texts)
    for text, answer in zip(texts, answers, strict=True):
        probabilities, references = by_hand(pipeline, text)
        assert answer["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert answer["label"] == int(np.argmax(probabilities))
        assert answer["references"] == references
    assert np.ptp([answer["probabilities"][0] for answer in answers]) > 0.05
    known = [answer["references"] for answer in answers[:5]]
    assert all(row not in rows and 3 not in rows for row, rows in zip(range(15, 20), known, strict=True))


def test_the_references_matter_to_the_answer(singles: RefBertPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    before = np.array([answer["probabilities"] for answer in singles(SINGLES)])
    monkeypatch.setattr(singles.bank, "lookup", lambda texts, count: np.full((len(texts), 2), -1))
    without = singles(SINGLES)
    assert all(answer["references"] == [] for answer in without)
    assert np.abs(np.array([answer["probabilities"] for answer in without]) - before).max() > 1e-3


@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_batch_size_does_not_change_answers(pairs: RefBertPipeline, size: int) -> None:
    other_size = RefBertPipeline(pairs.folder, device="cpu", batch_size=size)
    for one, other in zip(pairs.stream(iter(PAIRS)), other_size.stream(iter(PAIRS)), strict=True):
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
        assert (other["label"], other["references"]) == (one["label"], one["references"])


def test_a_stream_answers_before_its_input_ends(singles: RefBertPipeline) -> None:
    taken = 0

    def endless() -> Iterator[TextPair]:
        nonlocal taken
        while True:
            taken += 1
            yield SINGLES[taken % 30]

    stream = RefBertPipeline(singles.folder, device="cpu", batch_size=1).stream(endless())
    for _ in range(5):
        next(stream)
    assert taken == 5
    next(singles.stream(endless()))
    assert taken == 5 + singles.batch_size * SORTED_BATCHES


def test_a_text_of_a_hundred_thousand_words_is_cut(singles: RefBertPipeline, pairs: RefBertPipeline) -> None:
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
        logits = singles.network.model(
            cut, reference_keys=keys, reference_values=values, reference_mask=mask, references_projected=True
        ).logits[0]
    assert answer["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    assert np.isfinite(pairs([(long, "short")])[0]["probabilities"]).all()


def test_a_regressor_gives_scores(tmp_path: Path) -> None:
    pipeline = RefBertPipeline(exported(tmp_path, PAIRS[:20], num_labels=1), device="cpu")
    answers = pipeline(PAIRS[20:])
    assert all(answer.keys() == {"score", "references"} and isinstance(answer["score"], float) for answer in answers)
    assert np.ptp([answer["score"] for answer in answers]) > 0.05


def test_a_model_without_references_needs_no_bank(tmp_path: Path) -> None:
    pipeline = RefBertPipeline(exported(tmp_path, SINGLES[:1], reference_count=0), device="cpu")
    assert pipeline.bank is None
    assert pipeline(SINGLES[:1])[0].keys() == {"label", "probabilities"}


def test_a_tokenizer_that_gives_no_token_types(tmp_path: Path) -> None:
    """RoBERTa's, for one; the student learned with types that are all zero."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(tmp_path)
    model = RefBertForSequenceClassification(config(vocab_size=len(tokenizer), reference_count=0, pad_token_id=1))
    model.save_pretrained(tmp_path)
    seal(tmp_path, 2)
    assert "token_type_ids" not in tokenizer("a", "b")
    answers = RefBertPipeline(tmp_path, device="cpu")(PAIRS[:3])
    for (first, second), answer in zip(PAIRS[:3], answers, strict=True):
        encoded = tokenizer(first, second, truncation="longest_first", max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            expected = model.eval()(**encoded).logits[0].softmax(-1).tolist()
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_odd_texts_and_none_at_all(singles: RefBertPipeline) -> None:
    assert singles([]) == [] and list(singles.stream([])) == []
    answers = singles([("", None), ("🎉 \u200b ünïcode", None), ("?!", None)])
    assert all(np.isfinite(answer["probabilities"]).all() for answer in answers)


def test_texts_come_as_people_have_them(singles: RefBertPipeline, pairs: RefBertPipeline) -> None:
    expected = singles([("one text", None), ("another one", None)])
    assert singles(["one text", "another one"]) == singles([["one text"], ("another one",)]) == expected
    assert pairs([["a", "b"]]) == pairs([("a", "b")])


def test_the_wrong_number_of_sentences_is_refused(singles: RefBertPipeline, pairs: RefBertPipeline) -> None:
    with pytest.raises(UserError, match=r"text 2 has 2 sentence\(s\), but this model reads single texts; give 1 each"):
        singles(["a", ("a", "b")])
    for text in ("a", ("a",), ("a", None), ("a", "b", "c"), ()):
        with pytest.raises(UserError, match=r"text 1 has \d sentence\(s\), but this model reads pairs of sentences"):
            pairs([text])


def test_what_came_before_a_fault_in_the_source_is_answered(singles: RefBertPipeline) -> None:
    def faulty() -> Iterator[TextPair]:
        yield from SINGLES[:3]
        raise UserError("line 4 is empty")

    stream = singles.stream(faulty())
    assert [next(stream)["label"] for _ in range(3)] == [answer["label"] for answer in singles(SINGLES[:3])]
    with pytest.raises(UserError, match="line 4"):
        next(stream)


def test_classes_have_names_where_the_model_has(tmp_path: Path) -> None:
    names = {0: "no", 1: "yes"}
    (answer,) = RefBertPipeline(exported(tmp_path, SINGLES[:20], id2label=names), device="cpu")(SINGLES[:1])
    assert list(answer) == ["label", "name", "probabilities", "references"]
    assert answer["name"] == names[answer["label"]]


@pytest.mark.parametrize("count", [1, 5])
def test_another_number_of_references(singles: RefBertPipeline, count: int) -> None:
    other = RefBertPipeline(singles.folder, device="cpu", references=count)(SINGLES[20:])
    for one, two in zip(singles(SINGLES[20:]), other, strict=True):
        shared = min(2, count)
        assert one["references"][:shared] == two["references"][:shared] and len(two["references"]) <= count
    assert sum(len(answer["references"]) for answer in other) > 5 * count


def test_without_its_bank_a_model_predicts_when_asked(tmp_path: Path) -> None:
    folder = exported(tmp_path, SINGLES[:20])
    expected = RefBertPipeline(folder, device="cpu", references=0)(SINGLES[:3])
    shutil.rmtree(folder / "bank")
    with pytest.raises(UserError, match=r"has no reference bank .*by references=0"):
        RefBertPipeline(folder)
    assert RefBertPipeline(folder, device="cpu", references=0)(SINGLES[:3]) == expected
    assert expected[0].keys() == {"label", "probabilities"}
    without = exported(tmp_path / "without", SINGLES[:1], reference_count=0)
    with pytest.raises(UserError, match="was trained without; use 0"):
        RefBertPipeline(without, references=1)


def test_the_bank_of_another_model_is_refused(tmp_path: Path) -> None:
    folder, other = (exported(tmp_path / name, SINGLES[:20]) for name in ("one", "other"))
    model = RefBertForSequenceClassification.from_pretrained(other)
    model.bert.encoder.layer[0].attention.self.key.bias.data += 1
    model.save_pretrained(other)
    seal(other, 1)
    with pytest.raises(RefusedError, match="belongs to another model"):
        RefBertPipeline(other)
    RefBertPipeline(folder)


def test_an_int8_bank_changes_answers_little(tmp_path: Path, singles: RefBertPipeline) -> None:
    near = RefBertPipeline(exported(tmp_path, SINGLES[:20], codec="int8"), device="cpu")(SINGLES)
    differences = [
        abs(one["probabilities"][0] - two["probabilities"][0]) for one, two in zip(singles(SINGLES), near, strict=True)
    ]
    assert 0 < max(differences) < 0.01


def test_folders_that_hold_no_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json.*RUN_DIR/export"):
        RefBertPipeline(tmp_path)
    RefBertModel(config()).save_pretrained(tmp_path)
    seal(tmp_path, 1)
    with pytest.raises(UserError, match="holds an encoder without a head"):
        RefBertPipeline(tmp_path)
