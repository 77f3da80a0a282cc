"""Stores of samples, in memory or in a memory-mapped file on disk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core import dimensions
from diffuse_cli.media import Array
from diffuse_cli.system import DataError, files

PIXELS = "pixels.u8"
INDEX = "index.npz"

Shape = tuple[int, ...]


def make_blank(shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Return zeros with a shape and a type, which take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


class Store:
    """Store to which samples of one shape (C, *size) are appended. One channel fills all C.

    Samples are in memory, or in the file `pixels.u8` of a folder, which appears when it is
    finished. Until then it is written, not mapped: a full disk raises an error, not SIGBUS.

    Args:
        folder: the folder of the file; None for memory.
        capacity: the largest number of samples. A store for 0 samples writes no file.

    Raises:
        DataError: the samples do not fit in memory.
    """

    def __init__(
        self, folder: Path | None, capacity: int, shape: Shape, dtype: np.dtype[Any]
    ) -> None:
        self.capacity, self.shape, self.dtype, self.count = capacity, shape, dtype, 0
        self._folder = folder
        self._path = folder / PIXELS if folder is not None and capacity else None
        self._stack = contextlib.ExitStack()
        if self._path is not None:
            self._file = self._stack.enter_context(files.replace_file(self._path))
            return
        try:
            self._pixels = np.empty((capacity, *shape), dtype)
        except (MemoryError, ValueError) as error:
            mib = math.ceil(capacity * math.prod(shape) * dtype.itemsize / 2**20)
            need = f"{mib:,} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"
            message = f"{capacity:,} samples of {dimensions(shape[1:])} need {need} of memory"
            raise DataError(message, "Pass a smaller --size") from error

    def append(self, pixels: Array) -> None:
        """Append a sample."""
        if self._path is None:
            self._pixels[self.count] = pixels
        else:
            values = pixels.astype(self.dtype, copy=False)
            self._file.write(np.broadcast_to(values, self.shape).tobytes())
        self.count += 1

    def finish(self) -> Array:
        """Return the samples (N, C, *size), mapped read-only if they are in a file.

        Raises:
            OutputError: the file cannot be written.
        """
        self._stack.close()
        if self._path is None:
            return self._pixels[: self.count]
        return map_file(self._path, (self.count, *self.shape), self.dtype)

    def make_empty(self) -> Store:
        """Return an empty store of the same kind."""
        return Store(self._folder, self.capacity, self.shape, self.dtype)

    def abort(self, error: BaseException) -> None:
        """Remove an unfinished file. An `OSError` becomes an `OutputError`."""
        self._stack.__exit__(type(error), error, error.__traceback__)


class KeptSamples:
    """The first samples of a data set, up to `keep` bytes. All of them if it is None.

    They are in memory up to `map_over` bytes, otherwise in a file in `folder`, if it is given.

    Attributes:
        store: the store for the shape that all samples have so far; None before the first.
        open: whether another sample can be appended.
    """

    def __init__(
        self, folder: Path | None, total: int, keep: int | None, map_over: int = 0
    ) -> None:
        self.store: Store | None = None
        self.open = True
        self._folder, self._total, self._keep = folder, total, keep
        self._map_over = map_over
        if folder is not None:
            remove_index(folder)

    def replace_store(
        self, shape: Shape, dtype: np.dtype[Any], samples: Iterable[Array | None] | None = None
    ) -> None:
        """Start a store of another shape with these samples, by default those kept so far."""
        kept_samples: Iterable[Array] = () if self.store is None else self.store.finish()
        sample_bytes = math.prod(shape) * dtype.itemsize
        room = self._total if self._keep is None else min(self._total, self._keep // sample_bytes)
        folder = self._folder if room * sample_bytes > self._map_over else None
        self.store = Store(folder, room, shape, dtype)
        was_open, self.open = self.open, True
        for values in kept_samples if samples is None else samples:
            self.append(values)
        self.open = self.open and was_open

    def append(self, values: Array | None) -> None:
        """Keep a sample, unless an earlier one was left out. None leaves this one out."""
        assert self.store is not None
        if values is None or self.store.count == self.store.capacity:
            self.open = False
        elif self.open:
            self.store.append(values)


def map_file(path: Path, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return the samples in a file, mapped read-only."""
    if shape[0] == 0:  # an empty file cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", shape=shape)


def remove_index(folder: Path) -> None:
    """Remove the index of `folder`, whose samples are about to change."""
    files.remove(folder / INDEX)
