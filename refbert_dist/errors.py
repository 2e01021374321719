"""The ways a command can end other than well; each carries the exit code that the command line returns."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RefBertError(Exception):
    """Base of the errors that are shown to a person as one sentence, without a traceback."""

    exit_code = 1


class UserError(RefBertError):
    """The input is wrong. The message names the field, its value and the fix."""

    exit_code = 2


class InUseError(UserError):
    """Another command works in the run directory."""


class RefusedError(RefBertError):
    """It ran and the answer is no: damage was found, something is missing, a stage failed."""

    exit_code = 1


class StoppedError(RefBertError):
    """Stopped early on purpose (a signal, a time limit). Running the same command again continues."""

    exit_code = 75


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty string."""
    nearest = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
