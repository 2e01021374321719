"""Teacher states of references, as the first layer reads them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_experiment, tiny_teacher
from transformers import AutoModel

from refbert_dist.cache.states import OnlineStates
from refbert_dist.data.tokens import TokenSet, build_tokens, tokens_artifact
from refbert_dist.models.teacher import Teacher
from refbert_dist.references.states import ReferenceStates

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pool:
    folder: Path
    tokens: TokenSet
    teacher: Teacher

    def states(self, key_layer: int = 0, value_layer: int = 4, max_length: int = 16) -> ReferenceStates:
        online = OnlineStates(self.teacher, self.tokens, CPU)
        return ReferenceStates(
            self.tokens,
            online,
            self.teacher,
            key_layer=key_layer,
            value_layer=value_layer,
            max_length=max_length,
            device=CPU,
        )

    def plain(self, row: int) -> list[torch.Tensor]:
        """All hidden states ``[L, T]`` of a whole pool row, by transformers alone."""
        with torch.no_grad():
            outputs = AutoModel.from_pretrained(self.folder)(
                torch.from_numpy(self.tokens.ids(row).astype(np.int64))[None],
                token_type_ids=torch.from_numpy(self.tokens.types(row).astype(np.int64))[None],
                output_hidden_states=True,
            )
        return [state[0] for state in outputs.hidden_states]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Pairs, so that token types count."""
    root = tmp_path_factory.mktemp("states")
    exp = tiny_experiment(root, "corpus=null")
    build_tokens(exp, "train")
    folder = tiny_teacher(root / "teacher")
    return Pool(folder, TokenSet.open(tokens_artifact(exp, "train")), Teacher.load(str(folder)))


@pytest.mark.parametrize(("key_layer", "value_layer"), [(0, 4), (0, 2), (3, 0), (1, 1), (0, 0)])
def test_each_reference_has_the_states_of_the_layers_asked_for(pool: Pool, key_layer: int, value_layer: int) -> None:
    neighbours = np.array([[5, 40], [17, 2], [40, 5]])
    found = pool.states(key_layer, value_layer, max_length=24).gather(neighbours)
    assert found["reference_keys"].shape == found["reference_values"].shape == (3, 2, 24, 32)
    for place in np.ndindex(3, 2):
        plain = pool.plain(int(neighbours[place]))
        length = min(24, len(plain[0]))
        assert found["reference_mask"][place].tolist() == [True] * length + [False] * (24 - length)
        torch.testing.assert_close(found["reference_keys"][place][:length], plain[key_layer][:length])
        torch.testing.assert_close(found["reference_values"][place][:length], plain[value_layer][:length])


def test_the_teacher_saw_the_whole_text_of_which_the_first_tokens_are_read(pool: Pool) -> None:
    row = int(pool.tokens.lengths.argmax())
    _, values = pool.states(max_length=7).rows(np.array([row]))
    assert values.shape == (1, 7, 32)
    torch.testing.assert_close(values[0], pool.plain(row)[4][:7])
    with torch.no_grad():
        cut = AutoModel.from_pretrained(pool.folder)(torch.from_numpy(pool.tokens.ids(row)[:7].astype(np.int64))[None])
    assert (values[0] - cut.last_hidden_state[0]).abs().max() > 1e-3


def test_the_longest_of_these_references_sets_the_shape(pool: Pool) -> None:
    order = pool.tokens.lengths.argsort()
    short, long = int(order[0]), int(order[-1])
    longest = int(pool.tokens.lengths[long])
    assert pool.tokens.lengths[short] < longest <= 90
    found = pool.states(max_length=90).gather(np.array([[short], [long]]))
    assert found["reference_keys"].shape == (2, 1, longest, 32)
    assert found["reference_mask"].sum(-1).tolist() == [[pool.tokens.lengths[short]], [longest]]


def test_a_missing_reference_is_masked_whole(pool: Pool) -> None:
    found = pool.states().gather(np.array([[9, -1], [-1, -1]]))
    mask = found["reference_mask"]
    assert mask.dtype == torch.bool
    assert mask.any(-1).tolist() == [[True, False], [False, False]]
    assert torch.isfinite(found["reference_keys"]).all() and torch.isfinite(found["reference_values"]).all()
    alone = pool.states().gather(np.array([[9]]))
    length = int(alone["reference_mask"].sum())
    torch.testing.assert_close(found["reference_values"][0, 0, :length], alone["reference_values"][0, 0, :length])


def test_no_gradient_reaches_the_teacher(pool: Pool) -> None:
    found = pool.states().gather(np.array([[1, 2]]))
    assert not found["reference_keys"].requires_grad and not found["reference_values"].requires_grad
