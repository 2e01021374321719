from pathlib import Path

import pytest
import torch
from masked_models import masked_model
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from refbert_dist.augment.candidates import Candidates
from refbert_dist.augment.glove import Glove
from refbert_dist.augment.masked_words import MaskedWords
from refbert_dist.augment.words import replaceable
from refbert_dist.errors import UserError

SENTENCES = [
    "The company bought a small transmogrifier factory in the spring.",
    "Prices rose.",
    "It was them.",
    "Shares of the large bank fell, and nobody knew why prices moved.",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_model(tmp_path_factory.mktemp("bert"))


def words_of(folder: Path, batch_tokens: int = 8192) -> MaskedWords:
    return MaskedWords.load(str(folder), "task.augment.masked_lm", batch_tokens, torch.device("cpu"))


def found_in(masked: MaskedWords, count: int = 15) -> dict[tuple[int, str], list[str]]:
    slots = [replaceable(sentence) for sentence in SENTENCES]
    found = masked.candidates(slots, SENTENCES, count)
    return {(number, slots[number][place].word): words for (number, place), words in found.items()}


def test_candidates_are_those_of_a_direct_computation(bert: Path) -> None:
    """As in TinyBERT's code: [CLS] masked sentence [SEP] sentence [SEP], the K likeliest tokens at the mask."""
    tokenizer = AutoTokenizer.from_pretrained(bert)
    model = BertForMaskedLM.from_pretrained(bert).eval()
    expected = {}
    for number, sentence in enumerate(SENTENCES):
        pieces = tokenizer.tokenize(sentence)
        for slot in replaceable(sentence):
            own = tokenizer.tokenize(slot.word)
            if len(own) > 1:
                continue
            place = pieces.index(own[0])
            masked = [*pieces[:place], "[MASK]", *pieces[place + 1 :]]
            ids = tokenizer.convert_tokens_to_ids(["[CLS]", *masked, "[SEP]", *pieces, "[SEP]"])
            types = [0] * (len(pieces) + 2) + [1] * (len(pieces) + 1)
            with torch.no_grad():
                logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, place + 1]
            likeliest = tokenizer.convert_ids_to_tokens(logits.argsort(descending=True)[:15].tolist())
            expected[number, slot.word] = [token for token in likeliest if token.isalpha()]
    assert (0, "transmogrifier") not in expected and len(expected) > 10
    assert found_in(words_of(bert)) == expected
    assert found_in(words_of(bert, batch_tokens=40)) == expected


@pytest.mark.parametrize("model_type", ["roberta", "mpnet"])
def test_other_architectures_and_byte_vocabularies(tmp_path: Path, model_type: str) -> None:
    folder = masked_model(tmp_path, model_type)
    masked = words_of(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    sentence = "The function gives a value of another type, and transmogrifies it."
    slots = replaceable(sentence)
    found = masked.candidates([slots], [sentence], 40)
    assert [slots[place].word for _, place in found] == ["function", "value", "type"]
    for (_, place), words in found.items():
        slot = slots[place]
        encoded = tokenizer(sentence, sentence, return_offsets_mapping=True)
        at = next(i for i, (start, stop) in enumerate(encoded["offset_mapping"]) if start <= slot.start < stop)
        ids = torch.tensor([encoded["input_ids"]])
        assert tokenizer.decode(ids[0, at]).strip() == slot.word
        ids[0, at] = tokenizer.mask_token_id
        with torch.no_grad():
            tokens = model(ids).logits[0, at].topk(40).indices.tolist()
        starts = [text for text in map(tokenizer.decode, tokens) if text[0] == " " and text[1:].isalpha()]
        assert words == [text[1:] for text in starts]


def test_a_word_beyond_the_longest_input_has_no_candidates(tmp_path: Path) -> None:
    masked = words_of(masked_model(tmp_path, positions=17))
    # 14 tokens are left for the two of them.
    assert {word for _, word in found_in(masked)} == {
        "company",
        "bought",
        "small",
        "Prices",
        "rose",
        "Shares",
        "large",
        "bank",
        "fell",
    }


def test_each_source_has_its_own_words(bert: Path) -> None:
    glove = Glove(["transmogrifier", "machine", "company", "firm"], torch.eye(4, dtype=torch.float64).numpy())
    masked = words_of(bert)
    both, model, vectors = (
        Candidates(15, *found).of(SENTENCES[:1])[0] for found in ((glove, masked), (None, masked), (glove, None))
    )
    assert {slot.word for slot in both} == {"company", "bought", "small", "transmogrifier", "factory", "spring"}
    assert {slot.word for slot in model} == {slot.word for slot in both} - {"transmogrifier"}
    assert {slot.word: slot.candidates for slot in vectors} == {
        "company": ("firm", "machine", "transmogrifier"),
        "transmogrifier": ("company", "firm", "machine"),
    }
    by_word = {slot.word: slot.candidates for slot in both}
    assert by_word["transmogrifier"] == ("company", "firm", "machine") != by_word["company"]


def test_a_checkpoint_without_the_heads_weights_is_refused(tmp_path: Path, bert: Path) -> None:
    BertForMaskedLM.from_pretrained(bert).bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"task\.augment\.masked_lm is .* lacks \d+ weights of a masked language model"):
        words_of(tmp_path)
