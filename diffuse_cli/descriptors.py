"""Opening files to read bytes at a place, on every system."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_FLAGS = ("O_RDONLY", "O_NONBLOCK", "O_BINARY")
"""Not waiting for what writes to a FIFO (not on Windows), nor translating line ends."""

_moving = threading.Lock()


def open_to_read(path: str | Path) -> int:
    """A descriptor of a file, to be closed with `os.close`."""
    flags = 0
    for name in _FLAGS:
        flags |= getattr(os, name, 0)
    return os.open(path, flags)


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """At most `size` bytes from `start` on, whatever other threads read."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    with _moving:
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, size)
