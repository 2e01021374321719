"""The command line, called in the process of the tests."""

import io
import sys
from collections.abc import Callable

import pytest

from launchers import cli

Refbert = Callable[..., tuple[int, str, str]]


@pytest.fixture
def refbert(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refbert:
    """Run the command in this process; gives exit code, stdout and stderr."""

    def run(*arguments: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refbert", *map(str, arguments)])
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run
