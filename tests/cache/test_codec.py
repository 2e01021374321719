import warnings

import numpy as np
import pytest

from refbert_dist.cache.codec import decode, encode
from refbert_dist.errors import RefusedError


def test_the_error_is_at_most_half_a_step_of_float16() -> None:
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(50, 32)) * np.float32(10.0) ** rng.integers(-3, 4, size=(50, 32))).astype(np.float32)
    states[np.abs(states) < 2.0**-14] = 1.0  # below lie numbers that float16 holds with fewer bits
    assert encode(states).dtype == np.float16
    found = decode(encode(states))
    assert found.dtype == np.float32 and found.shape == states.shape
    error = np.abs(found - states) / np.abs(states)
    assert 0 < error.max() <= 2.0**-11


def test_what_float16_holds_comes_back_as_it_was() -> None:
    states = np.array([[0.0, -1.5, 65504.0, 2.0**-24]], np.float32)
    np.testing.assert_array_equal(decode(encode(states)), states)


@pytest.mark.parametrize("value", [1e5, -1e5, np.inf, np.nan])
def test_states_that_do_not_fit_are_refused(value: float) -> None:
    states = np.ones((2, 3), np.float32)
    states[1, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RefusedError, match=r"does not fit float16.*distill\.targets=online"):
            encode(states)
