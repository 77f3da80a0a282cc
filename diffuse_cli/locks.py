"""One process at a time on an output: a lock that goes with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diffuse_cli import files
from diffuse_cli.errors import BusyError

WAIT = "Wait for it, or choose another -o"


@contextlib.contextmanager
def held(path: Path, hint: str = WAIT) -> Iterator[None]:
    """Hold the lock file `path`, made where it is missing, and remove it at the end.

    The lock is POSIX's (`fcntl.lockf`): it belongs to the process, so that no forked child keeps
    it, and the system takes it away however the process ends.

    Raises:
        BusyError: another process holds it.
        OutputError: the file cannot be made or locked.
    """
    with _locked(path, hint):
        try:
            yield
        finally:
            files.remove(path)


def _locked(path: Path, hint: str) -> IO[str]:
    """The lock file, locked; made anew where its last holder removed it before it was ours."""
    while True:
        files.make_folder(path.parent)
        with files.reported(path), contextlib.ExitStack() as stack:
            lock = stack.enter_context(path.open("a+"))
            _lock(lock, path, hint)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                stack.pop_all()
                return lock


def _lock(lock: IO[str], path: Path, hint: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        lock.seek(0)
        holder = lock.read(20).strip() or "another"
        raise BusyError(
            f"process {files.show(holder)} is writing to {files.show(path.parent)}",
            hint,
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
