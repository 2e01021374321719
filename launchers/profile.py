"""Where a command runs: ``--on PROFILE``, a built-in name or a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from refbert_dist.config import parse_model, read_yaml
from refbert_dist.config.schema import Positive, Section
from refbert_dist.errors import UserError, did_you_mean


class Profile(Section):
    """A place to run at."""

    cluster: Literal["local"] = "local"
    """Kind of place: processes of this machine."""
    processes: Positive | None = None
    """Processes to use instead of ``launch.processes``."""
    threads: Positive | None = None
    """CPU threads of each process, instead of ``launch.threads``."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the processes."""


BUILT_IN = {"local": Profile()}


def load_profile(name: str) -> Profile:
    """The built-in profile of that name, or the one in that YAML file."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.exists():
        near = did_you_mean(name, BUILT_IN)
        raise UserError(f"--on is '{name}', which is neither a built-in profile (local) nor a YAML file{near}")
    return parse_model(Profile, read_yaml(path))
