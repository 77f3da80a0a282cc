"""Samples in memory, or in a memory-mapped file on disk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.core.settings import dimensions
from diffuse_cli.media import Array
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError

PIXELS = "pixels.u8"


INDEX = "index.npz"


Shape = tuple[int, ...]


class Memory:
    """A store of at most `capacity` samples in memory.

    Raises:
        DataError: they do not fit.
    """

    def __init__(self, capacity: int, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._count = 0
        try:
            self._pixels = np.empty((capacity, *shape), dtype)
        except (MemoryError, ValueError) as error:
            mib = math.ceil(capacity * math.prod(shape) * dtype.itemsize / 2**20)
            need = f"{mib:,} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"
            message = f"{capacity:,} samples of {dimensions(shape[1:])} need {need} of memory"
            raise DataError(message, "Choose a smaller --size") from error

    def append(self, pixels: Array) -> None:
        self._pixels[self._count] = pixels
        self._count += 1

    def finish(self) -> Array:
        """(N, C, *size)."""
        return self._pixels[: self._count]

    def abort(self, error: BaseException) -> None:
        """Nothing to clean up."""


class Mapped:
    """A store in the file `pixels.u8` of a folder, which appears when it is finished.

    Until then it is written, not mapped: a full disk raises an error, not SIGBUS.
    """

    def __init__(self, folder: Path, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._count = 0
        self._path = folder / PIXELS
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(files.writing(self._path))

    def append(self, pixels: Array) -> None:
        values = pixels.astype(self.dtype, copy=False)
        self._file.write(np.broadcast_to(values, self.shape).tobytes())
        self._count += 1

    def finish(self) -> Array:
        """(N, C, *size), mapped read-only.

        Raises:
            OutputError: the file cannot be written.
        """
        self._stack.close()
        return mapped_file(self._path, (self._count, *self.shape), self.dtype)

    def abort(self, error: BaseException) -> None:
        """Remove the unfinished file; an `OSError` becomes an `OutputError`."""
        self._stack.__exit__(type(error), error, error.__traceback__)


Store = Memory | Mapped
"""Takes samples of one shape (C, *size) one by one; a single channel is repeated to fill C."""


class Kept:
    """The first samples of a set, as many as `keep` bytes hold: all, where it is None.

    Attributes:
        store: of the shape that all samples have so far; None before the first.
        room: how many samples it has room for.
        open: whether it takes another.
    """

    def __init__(self, folder: Path | None, total: int, keep: int | None) -> None:
        self.store: Store | None = None
        self.room = 0
        self._folder, self._total, self._keep = folder, total, keep
        self._count, self.open = 0, True
        if folder is not None:
            forget(folder)

    def renew(self, shape: Shape, dtype: np.dtype[Any], fitted: Callable[[Array], Array]) -> None:
        """Begin a store of another shape with what was kept so far."""
        before: Iterable[Array] = () if self.store is None else self.store.finish()
        self.room, self._count = self._total, 0
        if self._keep is not None:
            self.room = min(self._total, self._keep // (math.prod(shape) * dtype.itemsize))
        self.store = self._begin(shape, dtype)
        was_open, self.open = self.open, True
        for values in before:
            self.append(fitted(values))
        self.open = self.open and was_open

    def append(self, values: Array | None) -> None:
        """Keep a sample, if none was left out before it; None leaves it out."""
        self.open = self.open and values is not None and self._count < self.room
        if self.open and self.store is not None and values is not None:
            self.store.append(values)
            self._count += 1

    def again(self) -> Store:
        """Return an empty store of the same shape."""
        assert self.store is not None
        return self._begin(self.store.shape, self.store.dtype)

    def _begin(self, shape: Shape, dtype: np.dtype[Any]) -> Store:
        if self._folder is None or self.room == 0:
            return Memory(self.room, shape, dtype)
        return Mapped(self._folder, shape, dtype)


def mapped_file(path: Path, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return the samples in a file, mapped read-only."""
    if shape[0] == 0:  # there is nothing to map
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", shape=shape)


def forget(folder: Path) -> None:
    """Remove the index of `folder`, whose samples are about to change."""
    files.remove(folder / INDEX)
