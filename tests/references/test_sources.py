"""What controls read instead of their neighbours."""

import numpy as np
import torch

from refbert_dist.references.sources import Neighbours, Noise, Zeros, dealt_rows, drawn_rows, encoded_by, same_rows

NEIGHBOURS = np.array([[1, 2], [0, -1], [3, 0], [2, 4], [2, 3]])
DOCUMENTS = np.array([0, 1, 1, 2, 3])


class Rows:
    """States that tell which row they are of."""

    def gather(self, neighbours: np.ndarray) -> dict[str, torch.Tensor]:
        states = torch.from_numpy(neighbours).float()[..., None, None] + torch.zeros(2, 3)
        return {"reference_keys": states, "reference_values": states + 10, "reference_mask": states[..., 0] >= 0}


def test_neighbours_of_samples() -> None:
    given = Neighbours(NEIGHBOURS, Rows()).of(np.array([3, 0]))
    assert given["reference_keys"][:, :, 0, 0].tolist() == [[2, 4], [1, 2]]


def test_zeros_stand_where_the_references_are() -> None:
    neighbours = Neighbours(NEIGHBOURS, Rows())
    plain, zeros = (source.of(np.arange(5)) for source in (neighbours, Zeros(neighbours)))
    assert plain["reference_values"].abs().sum() > 0
    assert zeros["reference_keys"].abs().sum() == zeros["reference_values"].abs().sum() == 0
    assert torch.equal(zeros["reference_mask"], plain["reference_mask"]) and not zeros["reference_mask"].all()


def test_noise_is_the_same_for_all_samples_and_none_of_the_states() -> None:
    neighbours = Neighbours(NEIGHBOURS, Rows())
    plain, noise, other = (
        source.of(np.arange(5)) for source in (neighbours, Noise(neighbours, 3), Noise(neighbours, 4))
    )
    assert torch.equal(noise["reference_mask"], plain["reference_mask"])
    keys, values = noise["reference_keys"], noise["reference_values"]
    assert keys.shape == values.shape == (5, 2, 2, 3) and keys.dtype == torch.float32
    assert (keys == keys[:1]).all() and (values == values[:1]).all()
    assert len(set(keys[0].ravel().tolist() + values[0].ravel().tolist())) == 2 * 2 * 2 * 3
    assert not torch.equal(keys, other["reference_keys"])


def test_noise_does_not_depend_on_the_longest_of_a_batch() -> None:
    class Long(Rows):
        def gather(self, neighbours: np.ndarray) -> dict[str, torch.Tensor]:
            return {name: tensor.repeat_interleave(3, dim=2) for name, tensor in super().gather(neighbours).items()}

    short, long = (Noise(Neighbours(NEIGHBOURS, rows), 3).of(np.arange(2)) for rows in (Rows(), Long()))
    assert torch.equal(short["reference_keys"], long["reference_keys"][:, :, :2])


def test_drawn_rows_are_none_of_the_own_document_and_all_allowed() -> None:
    table = np.tile(NEIGHBOURS, (200, 1))
    own = np.tile(DOCUMENTS, 200)
    rows = drawn_rows(table, own, DOCUMENTS, allowed=np.arange(4), seed=1)
    assert ((rows == -1) == (table == -1)).all(), "what is missing stays missing"
    present = rows >= 0
    assert set(rows[present].tolist()) == {0, 1, 2, 3}
    assert (DOCUMENTS[rows] != own[:, None])[present].all()
    assert (rows == drawn_rows(table, own, DOCUMENTS, allowed=np.arange(4), seed=1)).all()
    assert (rows != drawn_rows(table, own, DOCUMENTS, allowed=np.arange(4), seed=2)).any()


def test_everybody_is_given_the_same_rows_but_for_those_of_its_own_document() -> None:
    strangers = np.full(5, -1)
    rows = same_rows(np.zeros((5, 3), np.int64), strangers, DOCUMENTS, allowed=np.arange(1, 5), seed=1)
    (chosen,) = {tuple(row) for row in rows.tolist()}
    assert len(set(chosen)) == 3 and 0 not in chosen
    own = same_rows(NEIGHBOURS, DOCUMENTS, DOCUMENTS, allowed=np.arange(1, 5), seed=1)
    wanted = np.where((NEIGHBOURS < 0) | (DOCUMENTS[rows[:, :2]] == DOCUMENTS[:, None]), -1, rows[:, :2])
    assert (own == wanted).all()
    few = same_rows(np.zeros((5, 3), np.int64), strangers, DOCUMENTS, allowed=np.array([3]), seed=1)
    assert few.tolist() == [[3, -1, -1]] * 5, "no row that may not be read stands in for one that is not there"
    seeds = [same_rows(np.zeros((1, 1), np.int64), strangers[:1], DOCUMENTS, np.arange(5), seed) for seed in range(20)]
    assert len({int(row[0, 0]) for row in seeds}) > 2


def test_strangers_may_be_given_any_row() -> None:
    table = np.zeros((500, 1), np.int64)
    rows = drawn_rows(table, np.full(500, -1), DOCUMENTS, allowed=np.arange(5), seed=0)
    assert set(rows.ravel().tolist()) == {0, 1, 2, 3, 4}


def test_a_pool_of_one_document_leaves_nothing_to_draw() -> None:
    rows = drawn_rows(np.array([[1], [0]]), np.zeros(2, np.int64), np.zeros(2, np.int64), allowed=np.arange(2), seed=0)
    assert rows.tolist() == [[-1], [-1]]


def test_dealt_rows_are_the_list_of_another_sample() -> None:
    generator = np.random.default_rng(0)
    documents = np.arange(300)
    table = (documents[:, None] + generator.integers(1, 299, (300, 3))) % 300
    rows = dealt_rows(table, documents, documents, seed=5)
    lists = {tuple(row) for row in table.tolist()}
    assert all(tuple(row) in lists for row in rows.tolist())
    assert (rows != table).any(axis=1).all(), "nobody keeps its own"
    assert (rows != documents[:, None]).all(), "and nobody is its own reference"
    assert np.mean([row in rows.tolist() for row in table.tolist()]) > 0.9, "nearly all lists are still dealt"


def test_what_holds_states_already_is_left_as_it_is() -> None:
    given = {"reference_keys": torch.ones(1, 1, 2, 3)}
    assert encoded_by(None, given) is given
