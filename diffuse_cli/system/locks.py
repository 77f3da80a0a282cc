"""One process at a time on an output: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from diffuse_cli.system import files
from diffuse_cli.system.errors import BusyError

WAIT = "Wait for it, or choose another -o"

PATIENCE = 0.2
"""Seconds for the last holder to finish: it removes the file before it unlocks it."""


@contextlib.contextmanager
def held(path: Path, hint: str = WAIT, *, of: Path | None = None) -> Iterator[None]:
    """Hold the lock file `path`, and remove it at the end, with folders that are new and empty.

    The system releases the lock however the process ends. A forked child does not keep it:
    filelock 4 closes the child's copy of the file.

    Args:
        of: what is locked, for the error; by default the folder of the file.

    Raises:
        BusyError: another process holds it.
        OutputError: the file cannot be made or locked.
    """
    from filelock import FileLock, Timeout

    new = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    lock = FileLock(path, timeout=PATIENCE, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, new)
        files.make_folder(path.parent)
        with files.reported(path):
            try:
                stack.enter_context(lock)
            except Timeout:
                where = files.show(of or path.parent)
                raise BusyError(
                    f"process {_written(path) or 'another'} is writing to {where}", hint
                ) from None
            if os.name == "posix":
                # On Windows a locked file cannot be written, and filelock removes it.
                stack.callback(files.remove, path)
                path.write_text(f"{os.getpid()}\n")
        yield


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the inner ones first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def holder(path: Path) -> int | None:
    """The process that holds a lock file, as far as its number tells; the lock is not touched."""
    with contextlib.suppress(OSError, ValueError, OverflowError):
        process = int(_written(path))
        if process > 0 and os.name == "posix":
            with contextlib.suppress(PermissionError):  # it is there, and somebody else's
                os.kill(process, 0)
            return process
    return None


def _written(path: Path) -> str:
    try:
        return files.show(path.read_text(errors="replace")[:20].strip())
    except OSError:
        return ""
