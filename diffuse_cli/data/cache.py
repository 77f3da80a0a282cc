"""Where decoded samples are stored: an array in memory, or a mapped file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli import files
from diffuse_cli.core.settings import dimensions
from diffuse_cli.data import summary
from diffuse_cli.data.samples import Samples
from diffuse_cli.errors import DataError
from diffuse_cli.media import Array

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
        return _map(self._path, (self._count, *self.shape), self.dtype)

    def abort(self, error: BaseException) -> None:
        """Remove the unfinished file; an `OSError` becomes an `OutputError`."""
        self._stack.__exit__(type(error), error, error.__traceback__)


Store = Memory | Mapped
"""Takes samples of one shape (C, *size) one by one; a single channel is repeated to fill C."""


def _map(path: Path, shape: Shape, dtype: np.dtype[Any]) -> Array:
    return np.memmap(path, dtype, mode="r", shape=shape)


def forget(folder: Path) -> None:
    """Remove the index of `folder`, whose samples are about to change."""
    files.remove(folder / INDEX)


def save_index(images: Samples, folder: Path) -> None:
    """Write everything into `folder`, except samples that are mapped from it.

    Raises:
        OutputError: the folder cannot be written.
    """
    if not _is_mapped_from(images.stored, folder / PIXELS):
        forget(folder)
        files.write_bytes(folder / PIXELS, images.stored.tobytes())
    meta = {
        "shape": images.stored.shape,
        "dtype": images.stored.dtype.str,
        "medium": images.medium,
        "layout": images.layout,
        "transform": images.transform,
        "rate": images.rate,
        "class_names": images.class_names,
        "names": images.names,
        "summary": images.summary.to_dict(),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        labels=images.labels,
        digests=images.digests,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
    )
    files.write_bytes(folder / INDEX, buffer.getvalue())


def _is_mapped_from(pixels: Array, path: Path) -> bool:
    name = getattr(pixels, "filename", None)
    return name is not None and path.exists() and path.samefile(name)


def open_index(folder: Path) -> Samples:
    """What `save_index` wrote into `folder`, mapped read-only.

    Raises:
        DataError: the folder holds no index, or a damaged one.
    """
    try:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            labels, digests = index["labels"], index["digests"]
            meta = json.loads(index["meta"].tobytes())
        shape, dtype = tuple(meta["shape"]), np.dtype(meta.get("dtype", "u1"))
        if (folder / PIXELS).stat().st_size != math.prod(shape) * dtype.itemsize:
            raise ValueError("the pixels are not those of the index")
        return Samples(
            stored=_map(folder / PIXELS, shape, dtype),
            medium=meta.get("medium", "image"),
            layout=meta.get("layout"),
            transform=meta.get("transform"),
            rate=meta.get("rate"),
            labels=labels,
            class_names=tuple(meta["class_names"]),
            names=tuple(meta["names"]),
            digests=digests,
            summary=summary.from_dict(meta["summary"]),
        )
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"no image cache in {files.show(folder)}: {error}") from error
