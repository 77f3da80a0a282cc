"""Outputs of commands, which are checked before computing and written by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from diffuse_cli.system import files
from diffuse_cli.system.errors import BusyError, OutputError, UsageError
from diffuse_cli.system.processes import rank


def claim_option(config: Any, name: str, suffix: str) -> AbstractContextManager[Path | None]:
    """Claim the path of a configuration's option `name`, None if the option is not set.

    Raises:
        UsageError, OutputError, BusyError: see `claim_output`.
    """
    path = getattr(config, name)
    if path is None:
        return contextlib.nullcontext()
    flag = "-o" if name == "out" else f"--{name}"
    return claim_output(path, suffix, config.overwrite, flag=flag)


@contextlib.contextmanager
def claim_output(
    given: str | Path, suffix: str, overwrite: bool, *, flag: str = "-o", read: str | None = None
) -> Iterator[Path]:
    """Claim the path of a file, so that no other command writes it inside the block.

    Args:
        suffix: the suffix that the path must have.
        flag: the option that sets the path.
        read: the command's input, which must not be overwritten.

    Raises:
        UsageError: the path has another suffix, or is the input.
        OutputError: it exists and `overwrite` is false, or it cannot be written.
        BusyError: another process holds it.
    """
    path = Path(given)
    check_suffix(path, suffix, flag)
    if read is not None:
        check_other_than(path, read, flag)
    files.check_writable(path)
    with hold_output(path, flag):
        check_free(path, overwrite, hint=f"Choose another {flag}, or --overwrite")
        yield path


def check_other_than(path: str | Path, read: str, flag: str = "-o") -> None:
    """Refuse to write over the command's input.

    Raises:
        UsageError
    """
    if os.path.realpath(path) == os.path.realpath(read):
        raise UsageError(f"{flag} {files.show(path)} is the input itself", f"Choose another {flag}")


def hold_output(path: Path, flag: str = "-o") -> AbstractContextManager[None]:
    """Lock a file or a folder that is written under a temporary name and renamed.

    Temporary files of killed processes are removed. If a command has several processes, the first
    holds the lock.

    Raises:
        BusyError: another process holds the lock.
        OutputError: the path does not end in a name, or its folder cannot be written.
    """
    if rank() > 0:
        return contextlib.nullcontext()
    if path.name in ("", ".."):  # there is no name for the lock and temporary files
        line = f"cannot replace {files.show(path)}: the path does not end in the folder's name"
        raise OutputError(line, f"Choose another {flag}")
    lock = path.with_name(f".{path.name}.lock")
    hint = f"Wait for it, or choose another {flag}"
    return hold_lock(lock, hint, of=path, owned=re.escape(path.name))


def check_suffix(path: Path, suffix: str, flag: str = "-o") -> None:
    """Raise a `UsageError` if a path has another suffix."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"{flag} must end in {suffix}, not {files.show(path)!r}")


def check_free(path: Path, overwrite: bool, *, hint: str, of: Path | None = None) -> None:
    """Raise an `OutputError` if a file exists, without `overwrite`, or cannot be written.

    Args:
        of: the folder that the error names instead.
    """
    files.check_writable(path)
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{files.show(of or path)} exists already", hint)


# -- locks ----------------------------------------------------------------------------------------

# One process at a time writes an output. Its lock ends with the process.

WAIT = "Wait for it, or choose another -o"

PATIENCE = 0.2
"""Seconds to wait for the last holder, which removes the file before it unlocks it."""


@contextlib.contextmanager
def hold_lock(
    path: Path, hint: str = WAIT, *, of: Path | None = None, owned: str = ""
) -> Iterator[None]:
    """Hold the lock file `path`, and remove it at the end, with folders that are new and empty.

    The system releases the lock however the process ends. A forked child does not keep it:
    filelock 4 closes the child's copy of the file.

    Args:
        of: the locked output, for the error, by default the folder of the file.
        owned: a regular expression of names in the folder, whose temporary files of killed
            processes are removed.

    Raises:
        BusyError: another process holds the lock.
        OutputError: the file cannot be made or locked.
    """
    from filelock import FileLock, Timeout

    new = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    lock = FileLock(path, timeout=PATIENCE, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, new)
        files.make_folder(path.parent)
        with files.report_errors(path):
            try:
                stack.enter_context(lock)
            except Timeout:
                where = files.show(of or path.parent)
                text = f"process {_read_holder(path) or 'another'} is writing to {where}"
                raise BusyError(text, hint) from None
            if os.name == "posix":
                # On Windows, a locked file cannot be written, and filelock removes it.
                stack.callback(files.remove, path)
                path.write_text(f"{os.getpid()}\n")
        if owned:
            files.remove_leftovers(path.parent, owned)
        yield


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove empty folders, from the innermost outwards."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def holder(path: Path) -> int | None:
    """Return the process number in a lock file if the process exists, without taking the lock."""
    with contextlib.suppress(OSError, ValueError, OverflowError):
        process = int(_read_holder(path))
        if process > 0 and os.name == "posix":
            with contextlib.suppress(PermissionError):  # it exists, and is another user's
                os.kill(process, 0)
            return process
    return None


def _read_holder(path: Path) -> str:
    try:
        return files.show(path.read_text(errors="replace")[:20].strip())
    except OSError:
        return ""


class UnfinishedFiles:
    """Record of the files that a command writes into a folder, kept until all files exist.

    A stopped command leaves the record. Running it again can then tell its files from others.
    """

    NAME = ".unfinished"

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / self.NAME

    def add(self, name: str, sha256: str) -> None:
        """Record a file before it is written."""
        files.append_line(self.path, f"{sha256} {name}")

    def write(self, name: str, data: bytes) -> Path:
        """Record a file and write it."""
        self.add(name, hashlib.sha256(data).hexdigest())
        files.write_bytes(self.folder / name, data)
        return self.folder / name

    def names(self) -> set[str]:
        """Return the recorded files that exist with their recorded hash."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return set()
        recorded = {(sha256, name) for sha256, _, name in (line.partition(" ") for line in lines)}
        return {
            name
            for sha256, name in recorded
            if Path(name).name == name
            and (self.folder / name).is_file()
            and files.sha256(self.folder / name) == sha256
        }

    def clear(self) -> None:
        """Remove the files and the record of a stopped command."""
        for name in self.names():
            files.remove(self.folder / name)
        self.end()

    def end(self) -> None:
        """Remove the record, because all files exist."""
        files.remove(self.path)
