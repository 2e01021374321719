"""The trained codec: its codebook, its codes on every device, and what it needs faiss for."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from minilm_states import HELD_OUT, WIDTH, opened, random_states
from safetensors.numpy import save_file

from refbert_dist.artifacts import map_tensors
from refbert_dist.cache.codec import check_codec, open_codec, train_codebook
from refbert_dist.cache.codecs.product import Product
from refbert_dist.errors import RefusedError, UserError


def test_stages_and_product_both_carry_the_state(texts: list[np.ndarray], codebook: dict[str, np.ndarray]) -> None:
    states = np.concatenate(texts[-HELD_OUT:])
    codec = Product(codebook)
    codes = codec.encode(torch.from_numpy(states))[""]
    rest = states.copy()
    energy = [np.square(rest).sum()]
    for number, stage in enumerate(codebook["stages"]):
        rest -= stage[codes[:, number]]
        energy.append(np.square(rest).sum())
    energy.append(np.square(states - codec.decode({"": codes})).sum())
    assert all(after < 0.97 * before for before, after in pairwise(energy))


def test_a_codebook_survives_storing(texts: list[np.ndarray], codebook: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file(codebook, tmp_path / "codebook.safetensors")
    read = opened("pq", map_tensors(tmp_path / "codebook.safetensors"))
    states = torch.from_numpy(texts[-1])
    codes = opened("pq", codebook).encode(states)
    np.testing.assert_array_equal(read.encode(states)[""], codes[""])
    np.testing.assert_array_equal(read.decode(codes), opened("pq", codebook).decode(codes))


def test_an_accelerator_would_find_the_same_codes(texts: list[np.ndarray], codebook: dict[str, np.ndarray]) -> None:
    codec = Product(codebook)
    rest = torch.from_numpy(np.concatenate(texts[-HELD_OUT:]))
    expected = codec.encode(rest)[""]
    for stage, codes in zip(codebook["stages"], expected.T, strict=False):
        rest = rest - torch.from_numpy(stage)[codes.astype(np.int64)]
    assert (codec.on_device(rest) != expected[:, len(codebook["stages"]) :]).mean() < 1e-4  # ties


def test_codebooks_that_do_not_belong(codebook: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="needs a codebook"):
        open_codec("pq", WIDTH)
    with pytest.raises(ValueError, match=r"width 384 .* width 768"):
        open_codec("pq", 768, codebook)
    with pytest.raises(ValueError, match="has no codebook"):
        train_codebook("int8", random_states(0))


def test_a_sample_too_small_for_a_codebook() -> None:
    with pytest.raises(UserError, match=r"cache\.codec is 'pq'.*256 tokens.*there are 255; use cache\.codec=int4"):
        train_codebook("pq", random_states(0, 255))
    damaged = random_states(0, 300)
    damaged[9, 9] = np.nan
    with pytest.raises(RefusedError, match="not finite"):
        train_codebook("pq", damaged)


def test_without_faiss_reading_works_and_the_rest_says_so(
    monkeypatch: pytest.MonkeyPatch, texts: list[np.ndarray], codebook: dict[str, np.ndarray]
) -> None:
    states = torch.from_numpy(texts[0])
    stored = opened("pq", codebook).encode(states)
    monkeypatch.setitem(sys.modules, "faiss", None)
    reader = opened("pq", codebook)
    assert np.isfinite(reader.decode(stored)).all()
    missing = (
        r"cache\.codec is 'pq', which needs faiss.*run pip install 'refbert-dist\[faiss\]', or set cache.codec=int4"
    )
    for use in (
        lambda: check_codec("pq", WIDTH),
        lambda: reader.encode(states),
        lambda: train_codebook("pq", np.concatenate(texts)),
    ):
        with pytest.raises(UserError, match=missing):
            use()
    check_codec("int4", WIDTH)
