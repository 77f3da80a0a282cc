"""Open files for reading, on every system."""

from __future__ import annotations

import os
import re
import stat
import threading
from io import BufferedReader
from pathlib import Path

_moving = threading.Lock()


def open_to_read(path: str | Path) -> int:
    """Return a descriptor of a file, which the caller closes with `os.close`."""
    # Do not wait for a FIFO's writer (not on Windows) or translate line ends.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags)


def open_regular_file(path: str | Path) -> BufferedReader:
    """Open a regular file for reading. It does not wait for the writer of a FIFO.

    Raises:
        ValueError: it is not a regular file.
    """
    file = os.fdopen(open_to_read(path), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """Read a regular file, or a pipe of the shell, which has a writer.

    Raises:
        ValueError: it is something else, or has more than `max_bytes` bytes.
    """
    inherited = re.fullmatch(r"/dev/stdin|/(dev|proc/self)/fd/\d+", str(path))
    piped = inherited and stat.S_ISFIFO(Path(path).stat().st_mode)
    with Path(path).open("rb") if piped else open_regular_file(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes:,} bytes")
    return data


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """Read at most `size` bytes from `start` on, safely while other threads read."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    with _moving:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)
