"""Each codec holds what its arithmetic promises, on random, outlier-heavy and real states; and says no clearly."""

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from minilm_states import HELD_OUT, LAYER, NAMES, WIDTH, opened, random_states, round_trip
from safetensors.numpy import save_file

from refbert_dist.artifacts import map_tensors
from refbert_dist.cache.codec import (
    Codec,
    bytes_per_token,
    check_codec,
    codec_version,
    is_trained,
    open_codec,
    train_codebook,
)
from refbert_dist.cache.codecs.scalar import Int4
from refbert_dist.errors import RefusedError, UserError
from refbert_dist.models.parts import attention_scores


@pytest.fixture(params=NAMES)
def codec(request: pytest.FixtureRequest, codebook: dict[str, np.ndarray]) -> Codec:
    return opened(request.param, codebook)


# -- size and identity -----------------------------------------------------------------------------------------------


def test_bytes_at_bert_base_width() -> None:
    assert [bytes_per_token(name, 768) for name in NAMES] == [1536, 772, 408, 100]
    assert all(bytes_per_token("pq", width) <= 100 for width in range(8, 769, 8))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [64, 384, 768])
def test_bytes_are_those_of_the_arrays(name: str, width: int) -> None:
    states = random_states(0, 300, width)
    codec = open_codec(name, width, train_codebook(name, states) if is_trained(name) else None)
    stored = codec.encode(torch.from_numpy(states[:7]))
    assert sum(array.nbytes for array in stored.values()) == 7 * bytes_per_token(name, width)
    assert {len(array) for array in stored.values()} == {7}


def test_versions_name_the_codec() -> None:
    assert [codec_version(name) for name in NAMES] == ["fp16/1", "int8/1", "int4/1", "pq/1"]


GOLDEN = {"fp16": "eb978e6c9c2b", "int8": "c79495069872", "int4": "777b0c782992"}


@pytest.mark.parametrize("name", GOLDEN)
def test_other_bytes_need_another_version(name: str) -> None:
    """The states are short numbers, so version 1 stores the same bytes on every machine."""
    steps = torch.arange(-192, 192, dtype=torch.float32).repeat(3, 1) * torch.tensor([[0.0], [0.5], [-4.0]])
    stored = open_codec(name, WIDTH).encode(steps)
    digest = hashlib.sha256(b"".join(stored[key].tobytes() for key in sorted(stored))).hexdigest()
    assert (codec_version(name), digest[:12]) == (f"{name}/1", GOLDEN[name])


# -- errors that follow from the arithmetic ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_float16_errs_by_half_a_step(seed: int) -> None:
    states = random_states(seed)
    states[np.abs(states) < 2.0**-14] = 1.0  # below lie numbers that float16 holds with fewer bits
    error = np.abs(round_trip(open_codec("fp16", WIDTH), states) - states) / np.abs(states)
    assert 0 < error.max() <= 2.0**-11


def test_what_float16_holds_comes_back_as_it_was() -> None:
    states = np.array([[0.0, -1.5, 65504.0, 2.0**-24]], np.float32)
    np.testing.assert_array_equal(round_trip(open_codec("fp16", 4), states), states)


@pytest.mark.parametrize("seed", range(6))
def test_int8_errs_by_half_of_127_steps(seed: int) -> None:
    states = random_states(seed)
    largest = np.abs(states).max(-1, keepdims=True)
    error = np.abs(round_trip(open_codec("int8", WIDTH), states) - states)
    assert 0.9 / 254 < (error / largest).max() <= (1 + 1e-4) / 254
    # So for the whole row: sqrt(T) half steps at most, and uniform errors are sqrt(3) times smaller than that.
    relative = np.linalg.norm(error, axis=-1) / np.linalg.norm(states, axis=-1)
    bound = np.sqrt(WIDTH) * largest[:, 0] / 254 / np.linalg.norm(states, axis=-1)
    assert (relative <= bound).all() and (relative < 0.7 * bound).all()


@pytest.mark.parametrize("seed", range(6))
def test_int4_takes_the_nearest_of_its_levels(seed: int) -> None:
    states = random_states(seed)
    codec = open_codec("int4", WIDTH)
    assert isinstance(codec, Int4)
    groups = states.reshape(-1, 64)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], -1)
    error = np.abs(round_trip(codec, states).reshape(-1, 64) - groups) / np.abs(largest)
    nearest = np.abs(groups[..., None] / largest[..., None] - codec.levels).min(-1)
    # Beside the nearest level: the width of a cell of the look-up table, and float16's rounding of the scale.
    assert (error <= nearest + 1 / 1023 + 2.0**-11).all()
    assert error.max() <= 0.183, "the widest gap lies at the far end, opposite to the scale's sign"
    assert (error[np.abs(groups / largest) < 0.04] <= 0.0235).all(), "levels are close near zero"


def test_int4_keeps_half_the_error_of_even_steps_beside_an_outlier() -> None:
    states = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    states[:, 5] = 20
    even = np.round(states / 20 * 7) * 20 / 7
    ours = round_trip(open_codec("int4", 64), states)
    assert np.linalg.norm(ours - states) < 0.5 * np.linalg.norm(even - states)
    np.testing.assert_array_equal(ours[:, 5], states[:, 5])


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
def test_rows_of_zeros_stay_zero_and_neighbours_unharmed(name: str) -> None:
    states = random_states(2)
    states[::2] = 0
    found = round_trip(open_codec(name, WIDTH), states)
    assert not found[::2].any() and found[1::2].any(-1).all()
    alone = round_trip(open_codec(name, WIDTH), states[1::2])
    np.testing.assert_array_equal(found[1::2], alone)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_tiny_states_underflow_to_zero_not_to_noise(name: str) -> None:
    states = random_states(0) * np.float32(1e-9)
    found = round_trip(open_codec(name, WIDTH), states)
    assert np.isfinite(found).all() and (np.abs(found - states) <= 6e-8).all()


# -- errors on a real model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cosine", "error", "score_error"),
    [
        ("fp16", 0.99999, 2.5e-4, 2.5e-4),
        ("int8", 0.9998, 0.015, 0.012),
        ("int4", 0.993, 0.12, 0.1),
        ("pq", 0.975, 0.22, 0.17),
    ],
)
def test_stated_errors_on_minilm(
    name: str,
    cosine: float,
    error: float,
    score_error: float,
    texts: list[np.ndarray],
    codebook: dict[str, np.ndarray],
    encoder: torch.nn.Module,
) -> None:
    """Held-out passages: mean cosine, relative L2 error of the states, and of the next layer's recomputed scores."""
    held_out = texts[-HELD_OUT:]
    states = np.concatenate(held_out)
    found = round_trip(opened(name, codebook), states)
    own, ours = [], []
    borders = np.cumsum([len(text) for text in held_out])[:-1]
    with torch.no_grad():
        for rows, scores in ((states, own), (found, ours)):
            for text in np.split(rows, borders):
                scores.append(attention_scores(encoder, LAYER + 1, torch.from_numpy(text)[None]).flatten())
    assert torch.cosine_similarity(torch.from_numpy(found), torch.from_numpy(states)).mean() >= cosine
    assert 0 < relative_error(torch.from_numpy(found), torch.from_numpy(states)) <= error
    assert 0 < relative_error(torch.cat(ours), torch.cat(own)) <= score_error


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


# -- any shape, any device, any place ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_tokens(codec: Codec, tokens: int, texts: list[np.ndarray]) -> None:
    states = texts[0][:tokens]
    found = round_trip(codec, states)
    np.testing.assert_array_equal(found, round_trip(codec, texts[0])[:tokens])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_other_precisions(codec: Codec, dtype: torch.dtype, texts: list[np.ndarray]) -> None:
    states = torch.from_numpy(texts[0]).to(dtype)
    for key, array in codec.encode(states).items():
        np.testing.assert_array_equal(array, codec.encode(states.float())[key])


def test_states_that_do_not_lie_together(codec: Codec, texts: list[np.ndarray]) -> None:
    states = torch.from_numpy(texts[0][:20])
    apart = torch.stack([states, -states], 1)[:, 0]
    assert not apart.is_contiguous()
    for key, array in codec.encode(apart).items():
        np.testing.assert_array_equal(array, codec.encode(states)[key])


def test_stored_and_read_back_by_slices(codec: Codec, texts: list[np.ndarray], tmp_path: Path) -> None:
    states = np.concatenate(texts[:3])
    stored = codec.encode(torch.from_numpy(states))
    save_file({f"h3.{key}" if key else "h3": array for key, array in stored.items()}, tmp_path / "shard.safetensors")
    mapped = {name.partition(".")[2]: array for name, array in map_tensors(tmp_path / "shard.safetensors").items()}
    expected = codec.decode(stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written
        np.testing.assert_array_equal(codec.decode(mapped), expected)
        found = codec.decode({key: array[11:29] for key, array in mapped.items()})
    np.testing.assert_array_equal(found, expected[11:29])
    found += 1  # the reader's own
    np.testing.assert_array_equal(codec.decode(mapped), expected)


# -- the same bytes ---------------------------------------------------------------------------------------------------


def test_threads_do_not_change_a_byte(texts: list[np.ndarray]) -> None:
    import faiss

    sample, states = np.concatenate(texts[:40]), torch.from_numpy(np.concatenate(texts[40:]))
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(threads)
            codebook = train_codebook("pq", sample)
            arrays = [*codebook.values()]
            for name in NAMES:
                arrays += opened(name, codebook).encode(states).values()
            found.append([array.tobytes() for array in arrays])
            assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (threads, threads)
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])
    assert found[0] == found[1] == found[2]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_states_that_are_not_finite_are_refused(codec: Codec, value: float, texts: list[np.ndarray]) -> None:
    states = texts[0].copy()
    states[3, 17] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RefusedError, match=r"not finite.*teacher\.model.*cache\.precision=fp32"):
            codec.encode(torch.from_numpy(states))


@pytest.mark.parametrize("name", ["fp16", "int4"])
@pytest.mark.parametrize("value", [1e5, -1e5])
def test_states_that_do_not_fit_are_refused(name: str, value: float) -> None:
    states = torch.ones(2, 64)
    states[1, 1] = value
    with pytest.raises(RefusedError, match=rf"1e\+05 does not fit float16.*codec={name}.*int8.*distill\.targets=onl"):
        open_codec(name, 64).encode(states)
    np.testing.assert_allclose(round_trip(open_codec("int8", 64), states.numpy())[1, 1], value)


@pytest.mark.parametrize(("name", "width", "multiple"), [("int4", 312, 64), ("int4", 32, 64), ("pq", 390, 8)])
def test_a_width_that_does_not_fit_is_a_user_error(name: str, width: int, multiple: int) -> None:
    for use in (check_codec, open_codec):
        with pytest.raises(UserError, match=rf"cache\.codec is '{name}'.*multiple of {multiple}.*{width}.*codec=int8"):
            use(name, width)
    check_codec("int8", width)


@pytest.mark.parametrize("name", ["int8/2", "int7", ""])
def test_unknown_codecs_and_versions_are_user_errors(name: str) -> None:
    for use in (codec_version, is_trained, lambda name: bytes_per_token(name, 8), lambda name: open_codec(name, 8)):
        with pytest.raises(UserError, match=rf"cache\.codec is '{name}', which is not known.*fp16, int8, int4, pq"):
            use(name)


def test_planning_loads_neither_torch_nor_faiss() -> None:
    code = (
        "import sys; from refbert_dist.cache.codec import *; check_codec('pq', 768); codec_version('int4');"
        "print([name for name in ('torch', 'faiss', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
