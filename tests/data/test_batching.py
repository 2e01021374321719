import numpy as np
import pytest
import torch
from tiny import tiny_experiment

from refbert_dist.data.batching import length_mask, pad_rows, to_device, token_batch
from refbert_dist.data.tokens import TokenSet, build_tokens, tokens_artifact


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    exp = tiny_experiment(tmp_path_factory.mktemp("batching"), "corpus=null")
    build_tokens(exp, "train")
    return TokenSet.open(tokens_artifact(exp, "train"))


def test_rows_are_filled_up_to_the_longest() -> None:
    rows = [np.array([1, 2], np.int32), np.array([3], np.int32), np.array([4, 5, 6], np.int32)]
    padded = pad_rows(rows, 9)
    assert padded.dtype == np.int32
    assert padded.tolist() == [[1, 2, 9], [3, 9, 9], [4, 5, 6]]
    states = pad_rows([np.ones((2, 4), np.float32), np.ones((1, 4), np.float32)])
    assert states.shape == (2, 2, 4) and states[1, 1].tolist() == [0, 0, 0, 0]


def test_the_mask_marks_real_positions() -> None:
    assert length_mask([2, 0, 3]).tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert length_mask(np.array([1, 0]), 2).tolist() == [[True, False], [False, False]]
    assert length_mask([]).shape == (0, 0)


def test_a_batch_holds_ids_types_and_mask_of_each_sample(pairs: TokenSet) -> None:
    samples = np.array([7, 0, 31])
    batch = token_batch(pairs, samples, pad_id=99)
    longest = int(pairs.lengths[samples].max())
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(tensor.dtype == torch.int64 and tensor.shape == (3, longest) for tensor in batch.values())
    for row, sample in enumerate(samples.tolist()):
        length = int(pairs.lengths[sample])
        assert batch["input_ids"][row, :length].tolist() == pairs.ids(sample).tolist()
        assert batch["token_type_ids"][row, :length].tolist() == pairs.types(sample).tolist()
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
        assert set(batch["input_ids"][row, length:].tolist()) <= {99}
        assert not batch["token_type_ids"][row, length:].any()
    assert batch["token_type_ids"].any(), "pairs must have a second type, or nothing was compared"


def test_a_cut_batch_holds_the_first_tokens(pairs: TokenSet) -> None:
    samples = np.array([7, 0, 31])
    whole, cut = token_batch(pairs, samples, 0), token_batch(pairs, samples, 0, cut=5)
    for name, tensor in cut.items():
        assert torch.equal(tensor, whole[name][:, :5])


def test_moving_keeps_names_and_content(pairs: TokenSet) -> None:
    batch = token_batch(pairs, np.array([1, 2]), 0)
    moved = to_device(batch, "cpu")
    assert moved.keys() == batch.keys() and all(torch.equal(moved[name], batch[name]) for name in batch)
