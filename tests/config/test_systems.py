"""How systems are called."""

from typing import Any

import pytest

from refbert_dist.config import system_label


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (("refbert", 1), "RefBERT k=1"),
        (("refbert", 0), "RefBERT k=0"),
        (("refbert", 0, 16), "RefBERT, 16 learned states"),
        (("refbert", 2, 16), "RefBERT k=2, 16 learned states"),
        (("own", 1), "own states"),
        (("knn", 8), "8 neighbours' labels"),
        (("majority", None), "majority"),
    ],
)
def test_a_label_names_what_is_read(given: tuple[Any, ...], label: str) -> None:
    assert system_label(*given) == label
