"""The one place that writes files.

Every file appears whole or not at all: the bytes go to a temporary file beside it, are synced,
and are renamed over the name; then the folder is synced, so that the rename survives a power cut.
Every folder goes in one rename, too, before its files are removed. What a killed process leaves is
named `.NAME.PID.tmp`, and is removed when NAME is written next: the process that writes it holds a
lock on it, which goes with the process. Each operation passes through `operation`, the seam where
a test can stop the process.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffuse_cli.errors import OutputError

CACHE = "DIFFUSE_CACHE"
"""Names the folder of what is kept between runs; nothing is kept where it is empty."""


def cache_folder() -> Path | None:
    """`DIFFUSE_CACHE`, else `diffuse` in the user's cache folder; None where nothing is kept."""
    given = os.environ.get(CACHE)
    if given is not None:
        return Path(given) if given else None
    user = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # nobody's home is known
        # The specification has relative paths ignored.
        return (user if user.is_absolute() else Path.home() / ".cache") / "diffuse"
    return None


@contextlib.contextmanager
def operation(name: str, path: Path) -> Iterator[None]:
    """Around each operation on the disk. It does nothing; tests replace it."""
    yield


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OutputError(f"cannot write {show(path)}: {reason}", hint) from error


def show(path: Path | str | bytes) -> str:
    """A path for people: control characters, invalid bytes and newlines are escaped."""
    text = os.fsdecode(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Systems that cannot open a folder need no such step."""
    with operation("sync-folder", folder):
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except (PermissionError, IsADirectoryError):
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary(path: Path, kind: str = "") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{kind}.tmp")


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"


class _Writer(io.BufferedWriter):
    """A file, locked while it is open, whose writes pass through the seam."""

    def __init__(self, path: Path) -> None:
        while True:
            super().__init__(io.FileIO(path, "w"))
            # One that is swept before it is locked is made anew.
            if _lock(self.fileno()) is not False and _is_at(path, self.fileno()):
                break
            self.close()
        self._path = path

    def write(self, data: Any) -> int:
        with operation("write", self._path):
            return super().write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[io.BufferedWriter]:
    """A binary file that replaces `path` when the block ends without an error.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written.
    """
    temporary = _temporary(path)
    with reported(path):
        if not path.parent.is_dir():
            make_folder(path.parent)
        for other in _leftovers(path.parent.absolute()):
            if _is_of(other, path.name) and other != temporary and _is_abandoned(other):
                remove(other)
        try:
            with operation("open", temporary):
                file = _Writer(temporary)
            with file:
                yield file
                with operation("sync", temporary):
                    file.flush()
                    os.fsync(file.fileno())
            with operation("rename", path):
                temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@functools.cache
def _leftovers(folder: Path) -> tuple[Path, ...]:
    """The temporary files in a folder when this process first writes there: listing it for each
    file would take long where there are many."""
    with contextlib.suppress(OSError):
        return tuple(p for p in folder.iterdir() if _is_temporary(p))
    return ()


def _is_of(temporary: Path, name: str) -> bool:
    """Whether it is `.NAME.PID.tmp` of this name."""
    middle = temporary.name.removeprefix(f".{name}.").removesuffix(".tmp")
    return middle.isdecimal() and temporary.name == f".{name}.{middle}.tmp"


def _is_abandoned(path: Path) -> bool:
    """Whether the process that was writing a file is gone, here or on another machine."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        return _lock(file.fileno()) is True
    return False


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at `path`."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _lock(descriptor: int) -> bool | None:
    """Take the lock on a file that goes with this process. False where another process holds it,
    None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add one line to a log. A torn last line is the reader's to ignore."""
    with reported(path), operation("append", path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def make_folder(path: Path) -> None:
    """Make `path` and its parents."""
    with reported(path), operation("mkdir", path):
        path.mkdir(parents=True, exist_ok=True)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` with what `fill` writes into it; it appears whole or not at all.

    An earlier folder of that name is replaced.
    """
    temporary = _temporary(path)
    with reported(path):
        try:
            remove(temporary)
            make_folder(temporary)
            fill(temporary)
            sync_folder(temporary)
            remove(path)
            with operation("rename", path):
                temporary.rename(path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there. A folder goes as a whole."""
    with reported(path):
        if path.is_symlink() or not path.is_dir():
            if path.is_symlink() or path.exists():
                with operation("remove", path):
                    path.unlink(missing_ok=True)
            return
        doomed = path
        if not _is_temporary(path):
            doomed = _temporary(path, ".old")
            shutil.rmtree(doomed, ignore_errors=True)
            with operation("rename", path):
                path.rename(doomed)
        with operation("remove", doomed):
            shutil.rmtree(doomed)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in `folder`: all of it, or only what was to be `name`."""
    start = f".{name}." if name else "."
    with reported(folder):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if _is_temporary(path) and path.name.startswith(start):
                remove(path)


def check_room(folder: Path, total: int, largest: int) -> None:
    """Refuse, before any computing, what cannot fit on the disk.

    Args:
        total: bytes that will be written into `folder`, beside what is there.
        largest: bytes of the largest file among them.

    Raises:
        OutputError: the disk has less room, or the process may not write such a file.
    """
    there = folder
    while not there.exists():
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return
    if total > free:
        raise OutputError(
            f"{show(folder)} needs {_mib(total)} of disk, and {_mib(free)} are free",
            "Free some space, or choose another -o",
        )
    limit = _file_size_limit()
    if limit is not None and largest > limit:
        raise OutputError(
            f"{show(folder)} needs a file of {_mib(largest)}, and the limit is {_mib(limit)}",
            "Raise it with `ulimit -f`",
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _file_size_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def check_writable(path: Path) -> None:
    """Refuse, before any computing, a file that could not be written in the end.

    Raises:
        OutputError: a parent is a file, or the nearest existing folder refuses new files.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {show(path)}: {show(folder)} is not a folder")
    if path.is_dir():
        raise OutputError(f"cannot write {show(path)}: it is a folder")
    probe = folder / f".diffuse-{os.getpid()}.tmp"
    with reported(path):
        probe.touch()
        probe.unlink()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is neither."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(p.stat().st_size for p in paths if p.is_file())


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
