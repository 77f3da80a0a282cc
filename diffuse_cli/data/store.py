"""Samples of a data set: in memory, in a mapped file, as a stream, and saved with an index."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core import dimensions
from diffuse_cli.data import summary
from diffuse_cli.data.samples import Dataset
from diffuse_cli.data.stream import Stream, find_stream, lists_to_tuples
from diffuse_cli.media import MEDIA, Array, Size
from diffuse_cli.system import DataError, Progress, Work, files

PIXELS = "pixels.u8"
INDEX = "index.npz"

PLAIN = ("class_names", "names", "medium", "layout", "transform", "rate")
"""Attributes of a `Dataset` that are written as they are."""

SECONDS_BETWEEN_EVENTS = 0.1


def make_blank(shape: Size, dtype: npt.DTypeLike) -> Array:
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
        self, folder: Path | None, capacity: int, shape: Size, dtype: np.dtype[Any]
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
            raise DataError(message, "Pass a smaller --size", code="out_of_memory") from error

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
        self, shape: Size, dtype: np.dtype[Any], samples: Iterable[Array | None] | None = None
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


def map_file(path: Path, shape: Size, dtype: np.dtype[Any]) -> Array:
    """Return the samples in a file, mapped read-only."""
    if shape[0] == 0:  # an empty file cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", shape=shape)


def remove_index(folder: Path) -> None:
    """Remove the index of `folder`, whose samples are about to change."""
    files.remove(folder / INDEX)


def store_stream(stream: Stream, store: Store) -> Work[Any]:
    """Return all samples of a stream if the store can keep them, else the stream."""
    if (room := min(store.capacity, len(stream))) > len(stream.kept_samples):
        yield from _keep_first(stream, store.make_empty(), room)
    if len(stream.kept_samples) == len(stream) and not stream.holes:
        return stream.kept_samples
    return stream


def _keep_first(stream: Stream, store: Store, count: int) -> Work[None]:
    """Keep the first `count` samples of a stream in an empty store."""
    task, holes, last = f"keeping {MEDIA[stream.medium].many}", set[int](), time.monotonic()
    blank = make_blank(stream.sample_shape, stream.dtype)
    yield Progress(task, 0, count)
    try:
        for row, values in enumerate(stream.read_first(count)):
            if values is None:
                holes.add(row)
            store.append(blank if values is None else values)
            if time.monotonic() - last > SECONDS_BETWEEN_EVENTS:
                last = time.monotonic()
                yield Progress(task, row, count)
    except BaseException as error:
        store.abort(error)
        raise
    yield Progress(task, count, count)
    stream.kept_samples, stream.holes = store.finish(), frozenset(holes)


def save_index(images: Dataset, folder: Path) -> None:
    """Write a data set into `folder`, except samples that are already mapped from it.

    Raises:
        OutputError: the folder cannot be written.
    """
    stream = find_stream(images.stored)
    stored = stream.kept_samples if stream else images.stored
    path, mapped = folder / PIXELS, getattr(stored, "filename", None)
    if mapped is None or not path.exists() or not path.samefile(mapped):
        remove_index(folder)
        files.write_bytes(path, stored.tobytes())
    meta = {
        "shape": stored.shape,
        "dtype": stored.dtype.str,
        **{name: getattr(images, name) for name in PLAIN},
        "summary": images.summary.to_dict(),
        "stream": stream.to_dict() if stream else None,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        labels=images.labels,
        digests=images.digests,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
    )
    files.write_bytes(folder / INDEX, buffer.getvalue())


def open_index(folder: Path) -> Dataset:
    """Open the data set that `save_index` wrote into `folder`, mapped read-only.

    Raises:
        DataError: the folder has no index, or it is damaged.
    """
    try:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            labels, digests = index["labels"], index["digests"]
            meta = json.loads(index["meta"].tobytes())
        shape, dtype = tuple(meta["shape"]), np.dtype(meta["dtype"])
        if (folder / PIXELS).stat().st_size != math.prod(shape) * dtype.itemsize:
            raise ValueError("the samples do not match the index")
        stored: Any = map_file(folder / PIXELS, shape, dtype)
        if meta["stream"]:
            stored = Stream.from_dict(meta["stream"], digests, stored)
        plain: dict[str, Any] = dict(zip(PLAIN, lists_to_tuples(map(meta.get, PLAIN)), strict=True))
        return Dataset(
            stored=stored,
            labels=labels,
            digests=digests,
            summary=summary.from_dict(meta["summary"]),
            **plain,
        )
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        text = f"no image cache in {files.show(folder)}: {error}"
        raise DataError(text, code="data_unreadable", path=folder) from error
