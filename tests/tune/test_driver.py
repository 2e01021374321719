"""What fits on the nodes of a search."""

from pathlib import Path
from typing import Any

import pytest
from searches import search_of

from refbert_dist.errors import UserError
from tune.config import Search, TrialConfig
from tune.driver import trials_at_once

NODES = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 2.0}]


def asking(root: Path, **trial: Any) -> Search:
    return search_of(root, root / "run").model_copy(update={"trial": TrialConfig(**trial)})


@pytest.mark.parametrize(
    ("trial", "count"),
    [
        ({}, 6),
        ({"cpus": 2}, 3),
        ({"processes": 3}, 1),
        ({"gpus": 1}, 2),
        ({"gpus": 0.25}, 4),
        ({"gpus": 2, "cpus": 4}, 1),
        ({"concurrent": 6}, 6),
    ],
)
def test_trials_at_once(tmp_path: Path, trial: dict[str, Any], count: int) -> None:
    assert trials_at_once(asking(tmp_path, **trial), NODES) == count


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ({"cpus": 5}, "a trial asks for 5 CPUs .* but the largest node here has 4; set trial.cpus to at most 4"),
        ({"processes": 5}, "a trial asks for 5 CPUs"),
        ({"gpus": 3}, r"trial.gpus is 3, but the largest node here has 2 GPU\(s\)"),
        ({"concurrent": 7}, "trial.concurrent is 7, but .* only 6 fit here; set trial.concurrent to at most 6"),
        ({"concurrent": 3, "gpus": 1}, "only 2 fit here"),
    ],
)
def test_what_would_wait_for_ever_is_refused(tmp_path: Path, trial: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        trials_at_once(asking(tmp_path, **trial), NODES)
