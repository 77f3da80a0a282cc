"""The one place that writes files.

Every file appears whole or not at all: the bytes go to a temporary file beside it, are synced,
and are renamed over the name; then the folder is synced, so that the rename survives a power cut.
Each operation passes through `operation`, the seam where a test can stop the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from diffuse_cli.errors import OutputError


def operation(name: str, path: Path) -> None:
    """Called before each operation on the disk. It does nothing; tests replace it."""


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
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
    operation("sync-folder", folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without an error.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            operation("open", temporary)
            with temporary.open("wb") as file:
                yield file
                operation("sync", temporary)
                file.flush()
                os.fsync(file.fileno())
            operation("rename", path)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


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
    with _reported(path):
        operation("append", path)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def make_folder(path: Path) -> None:
    """Make `path` and its parents."""
    with _reported(path):
        operation("mkdir", path)
        path.mkdir(parents=True, exist_ok=True)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` with what `fill` writes into it; it appears whole or not at all.

    An earlier folder of that name is replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _reported(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            fill(temporary)
            sync_folder(temporary)
            if path.exists():
                remove(path)
            operation("rename", path)
            temporary.rename(path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    with _reported(path):
        operation("remove", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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
    with _reported(path):
        probe.touch()
        probe.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
