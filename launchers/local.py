"""Start stages on this machine."""

from __future__ import annotations

from launchers.profile import LocalProfile
from refbert_dist.local import in_processes
from refbert_dist.pipeline import Launch, in_this_process


def local_launcher(profile: LocalProfile) -> Launch:
    """As a local profile says."""
    if profile.cluster == "in-process":
        return in_this_process
    return in_processes(profile.processes, profile.threads, profile.environment)
