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
    """Store of the first samples of a data set, up to `keep` bytes. All of them if it is None.

    Samples have one shape (C, *size). One channel fills all C. They are in memory up to `map_over`
    bytes, otherwise in the file `pixels.u8` of `folder`, if it is given. The file appears when it
    is finished. Until then it is written, not mapped: a full disk raises an error, not SIGBUS.

    Args:
        total: the number of samples of the data set.

    Attributes:
        shape, dtype: the shape and type of all samples so far. The shape is () before the first.
        capacity: the largest number of samples.
        count: the number of samples.
        open: whether another sample can be appended.
    """

    def __init__(self, folder: Path | None, total: int, keep: int | None, map_over: int) -> None:
        self.shape: Size = ()
        self.dtype, self.capacity, self.count, self.open = np.dtype("u1"), 0, 0, True
        self._folder, self._total, self._keep, self._map_over = folder, total, keep, map_over
        self._path: Path | None = None
        self._samples: Array = np.zeros(0, self.dtype)
        self._stack = contextlib.ExitStack()
        if folder is not None:
            remove_index(folder)

    def start(
        self, shape: Size, dtype: np.dtype[Any], samples: Iterable[Array | None] | None = None
    ) -> None:
        """Start again with these samples of another shape, by default those kept so far.

        Raises:
            DataError: the samples do not fit in memory.
        """
        before = self.finish()
        sample_bytes = math.prod(shape) * dtype.itemsize
        room = self._total if self._keep is None else min(self._total, self._keep // sample_bytes)
        self.shape, self.dtype, self.capacity, self.count = shape, dtype, room, 0
        self._path = None
        if self._folder is not None and room * sample_bytes > self._map_over:
            self._path = self._folder / PIXELS
            self._file = self._stack.enter_context(files.replace_file(self._path))
        else:
            try:
                self._samples = np.empty((room, *shape), dtype)
            except (MemoryError, ValueError) as error:
                mib = math.ceil(room * sample_bytes / 2**20)
                need = f"{mib:,} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"
                message = f"{room:,} samples of {dimensions(shape[1:])} need {need} of memory"
                raise DataError(message, "Pass a smaller --size", code="out_of_memory") from error
        was_open, self.open = self.open, True
        for values in before if samples is None else samples:
            self.append(values)
        self.open = self.open and was_open

    def append(self, values: Array | None) -> None:
        """Append a sample, unless an earlier one was left out. None leaves this one out."""
        if values is None or self.count == self.capacity:
            self.open = False
        elif self.open:
            if self._path is None:
                self._samples[self.count] = values
            else:
                values = values.astype(self.dtype, copy=False)
                self._file.write(np.broadcast_to(values, self.shape).tobytes())
            self.count += 1

    def finish(self) -> Array:
        """Return the samples (N, C, *size), mapped read-only if they are in a file.

        Raises:
            OutputError: the file cannot be written.
        """
        self._stack.close()
        if self._path is None:
            return self._samples[: self.count]
        return map_file(self._path, (self.count, *self.shape), self.dtype)

    def abort(self, error: BaseException) -> None:
        """Remove an unfinished file. An `OSError` becomes an `OutputError`."""
        self._stack.__exit__(type(error), error, error.__traceback__)


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
        store.start(stream.sample_shape, stream.dtype, ())
        store.open = True
        yield from _keep_first(stream, store, room)
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
