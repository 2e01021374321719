"""Ends a process at its n-th step of writing, by SIGKILL or by a power cut that loses what was not flushed.

The disk, the files and the calls are real: the wrappers only count, remember what has been flushed, and at the end take
back from the disk what a machine without power might not have written.
"""

import contextlib
import io
import os
import signal
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOSSES = ("nothing", "contents", "names", "names but the newest")
"""What is lost: nothing (a kill), the second half of each unflushed file, the unflushed changes of folders, or all of
these but the last one, since a disk may write them in another order."""

Undo = Callable[[], object]
Work = Callable[[], object]


class Crash:
    """Counts the steps of the work of this process under ``root``; ends it before step ``last``."""

    def __init__(self, root: Path, graveyard: Path, last: int | None, loss: str) -> None:
        self.root, self.graveyard, self.last, self.loss = root, graveyard, last, loss
        self.steps = 0
        self.flushed = {self._inode(path.lstat()) for path in root.rglob("*")}
        self.unflushed_names: list[tuple[Path, Undo]] = []

    def install(self) -> None:
        """Wrap the calls by which files are written; for the rest of this process's life."""
        for name in ("replace", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "fsync"):
            setattr(os, name, self._wrapped(getattr(os, name), getattr(self, f"_after_{name}", None)))
        io.open = self._opening(io.open)  # type: ignore[assignment]

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.last:
            self._lose()
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _inode(stat: os.stat_result) -> tuple[int, int]:
        return stat.st_dev, stat.st_ino

    def _wrapped(self, real: Callable[..., Any], after: Callable[..., Undo | None] | None) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            saved = self._save(arguments[-1]) if not options and isinstance(arguments[-1], (str, Path)) else None
            result = real(*arguments, **options)
            if after and not options:
                after(*arguments, saved)
            return result

        return call

    def _save(self, path: Any) -> Path | None:
        """Another link to a file that is about to lose its name."""
        if not Path(path).is_file() and not Path(path).is_symlink():
            return None
        saved = self.graveyard / str(self.steps)
        _link(path, saved, follow_symlinks=False)
        return saved

    def _changed(self, path: Any, undo: Undo) -> None:
        self.unflushed_names.append((Path(path).parent, undo))

    def _after_replace(self, source: Any, target: Any, saved: Path | None) -> None:
        def undo() -> None:
            _rename(target, source)
            if saved:
                _link(saved, target, follow_symlinks=False)

        self._changed(target, undo)

    _after_rename = _after_replace

    def _after_link(self, _source: Any, target: Any, _saved: Path | None) -> None:
        self._changed(target, lambda: _unlink(target))

    def _after_symlink(self, _source: Any, target: Any, *_: Any) -> None:
        self._changed(target, lambda: _unlink(target))

    def _after_unlink(self, path: Any, saved: Path | None) -> None:
        if saved:
            self._changed(path, lambda: _link(saved, path, follow_symlinks=False))

    def _after_fsync(self, handle: int, _saved: None) -> None:
        self.flushed.add(self._inode(os.fstat(handle)))
        path = Path("/proc/self/fd", str(handle)).readlink()
        self.unflushed_names = [(folder, undo) for folder, undo in self.unflushed_names if folder != path]

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return real(file, mode, *arguments, **options)
            self.step()
            stream = real(file, mode, *arguments, **options)
            write = stream.write

            def in_halves(data: Any) -> int:
                half = len(data) // 2
                for part in (data[:half], data[half:]):
                    self.step()
                    write(part)
                    stream.flush()
                return len(data)

            try:
                stream.write = in_halves
            except AttributeError:  # a buffered binary stream takes no attributes
                return _Halves(stream, in_halves)
            return stream

        return opened

    def _lose(self) -> None:
        if self.loss == "contents":
            for path in self.root.rglob("*"):
                if path.is_file() and self._inode(path.lstat()) not in self.flushed:
                    os.truncate(path, path.stat().st_size // 2)
        if self.loss.startswith("names"):
            lost = self.unflushed_names[: -1 if self.loss == "names but the newest" else None]
            for _, undo in reversed(lost):
                with contextlib.suppress(OSError):
                    undo()


class _Halves:
    def __init__(self, stream: Any, write: Callable[[Any], int]) -> None:
        self.stream, self.write = stream, write

    def __enter__(self) -> "_Halves":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_rename, _link, _unlink = os.rename, os.link, os.unlink


def crash(work: Work, root: Path, graveyard: Path, last: int | None, loss: str) -> int | None:
    """Do ``work`` in a child that crashes before step ``last``; gives its number of steps if it came to the end."""
    graveyard.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            counter = Crash(root, graveyard, last, loss)
            counter.install()
            work()
            counter.step()
            os.write(writing, struct.pack("q", counter.steps))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    answer = os.read(reading, 8)
    os.close(reading)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed of itself; see stderr"
    return struct.unpack("q", answer)[0] if answer else None
