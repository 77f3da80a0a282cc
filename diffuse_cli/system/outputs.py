"""Outputs of commands, which are checked before computing and written by one process at a time."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from diffuse_cli.system import OutputError, UsageError, files
from diffuse_cli.system.errors import BusyError
from diffuse_cli.system.processes import rank

WAIT = "Wait for it, or choose another -o"

PATIENCE = 0.2
"""Seconds to wait for the last holder, which removes the file before it unlocks it."""

UNFINISHED = ".unfinished"
"""Folder of new files that do not have their place yet, which a stopped command leaves."""

RECORD = "record"
"""File in it with the SHA-256 and the name of each new file."""


def claim_option(
    path: str | None, suffix: str, overwrite: bool, flag: str = "-o", read: str | None = None
) -> AbstractContextManager[Path | None]:
    """Claim the path of an option, None if the option is not set.

    Raises:
        UsageError, OutputError, BusyError: see `claim_output`.
    """
    if path is None:
        return contextlib.nullcontext()
    return claim_output(path, suffix, overwrite, flag=flag, read=read)


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
        text = f"{flag} {files.show(path)} is the input itself"
        hint = f"Choose another {flag}"
        raise UsageError(text, hint, code="output_is_input", option=flag, path=path)


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
        hint = f"Choose another {flag}"
        raise OutputError(line, hint, code="output_unsuited", option=flag, path=path)
    lock = path.with_name(f".{path.name}.lock")
    hint = f"Wait for it, or choose another {flag}"
    return hold_lock(lock, hint, target=path, owned=re.escape(path.name))


def check_suffix(path: Path, suffix: str, flag: str = "-o") -> None:
    """Raise a `UsageError` if a path has another suffix."""
    if path.suffix.lower() != suffix:
        text = f"{flag} must end in {suffix}, not {files.show(path)!r}"
        raise UsageError(text, code="output_unsuited", option=flag, path=path)


def check_free(path: Path, overwrite: bool, *, hint: str, folder: Path | None = None) -> None:
    """Raise an `OutputError` if a file exists, without `overwrite`, or cannot be written.

    Args:
        folder: the folder that the error names instead.
    """
    files.check_writable(path)
    if os.path.lexists(path) and not overwrite:
        text = f"{files.show(folder or path)} exists already"
        raise OutputError(text, hint, code="output_exists", path=folder or path)


@contextlib.contextmanager
def hold_lock(
    path: Path, hint: str = WAIT, *, target: Path | None = None, owned: str = ""
) -> Iterator[None]:
    """Hold the lock file `path`, and remove it at the end, with folders that are new and empty.

    The system releases the lock however the process ends. A forked child does not keep it:
    filelock 4 closes the child's copy of the file.

    Args:
        target: the locked output, for the error, by default the folder of the file.
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
                where = files.show(target or path.parent)
                text = f"process {_read_holder(path) or 'another'} is writing to {where}"
                raise BusyError(text, hint, path=target or path.parent) from None
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


def replace_files(folder: Path, owned: Sequence[str], fill: Callable[[Path], None]) -> None:
    """Replace the files `owned` of a folder by those that `fill` writes into an empty folder.

    The folder changes only after all new files exist. Even then it never has files of two outputs:
    all old files except the first of `owned`, which `fill` always writes, are removed, and the new
    files are renamed in the order of `owned`. The caller holds the lock of the folder.

    Raises:
        OutputError: a file cannot be written, removed or renamed.
    """
    new, lines = folder / UNFINISHED, _read_record(folder)

    def fill_and_record(temporary: Path) -> None:
        fill(temporary)
        names = sorted(path.name for path in temporary.iterdir())
        lines.extend(f"{files.sha256(temporary / name)} {name}" for name in names)
        files.write_text(temporary / RECORD, "\n".join(lines))

    files.write_folder(new, fill_and_record)
    try:
        for name in owned[:0:-1]:
            files.remove(folder / name)
        for name in owned:
            if (new / name).exists():
                files.rename(new / name, folder / name)
        with files.report_errors(folder):
            files.sync_folder(folder)
        files.remove(new)
    except OutputError as error:
        text = f"{error.message}. {files.show(folder)} may lack files"
        hint = "Run the command again, with --overwrite"
        raise OutputError(text, hint, code=error.code, path=error.path) from error


def list_unfinished(folder: Path, owned: Iterable[str]) -> set[str]:
    """Return the files `owned` that a stopped `replace_files` recorded and renamed."""
    recorded = set(_read_record(folder))
    present = [name for name in owned if recorded and (folder / name).is_file()]
    return {name for name in present if f"{files.sha256(folder / name)} {name}" in recorded}


def _read_record(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        text = (folder / UNFINISHED / RECORD).read_text("utf-8", errors="replace")
        return text.splitlines()
    return []
