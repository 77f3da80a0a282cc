"""Samples that a program holds, under a name such as `memory:1` in the place of a path.

Each becomes the bytes of a file that has the same numbers, and is then read as one: the same images
in a folder have the same fingerprint, held-out part, classes and weights.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from diffuse_cli.config.parsers import plain
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.data.sources.entries import Entry, MetadataRow, Source
from diffuse_cli.media import MEDIA, Array, layout_of
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.run_reader import MEMORY

CLASS = "label"
"""What is told of a sample under this name is its class."""

PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""Pillow's modes that a PNG keeps; other images become TIFFs."""


class File(NamedTuple):
    """A sample as the bytes of a file, whose extension says what reads it, and the shape of an
    array that is not an image."""

    data: bytes
    suffix: str
    shape: tuple[int, ...] | None = None


Around: TypeAlias = Callable[[], contextlib.AbstractContextManager[object]]


class _Held:
    """Samples, asked for by one thread at a time: not every sequence can be shared."""

    def __init__(self, samples: Sequence[Any], around: Around) -> None:
        self.samples, self.around, self.lock = samples, around, threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def known(self, index: int) -> tuple[File, Any]:
        """A sample, and what is told of it."""
        with self.lock:
            with self.around():
                given = self.samples[index]
            sample, told = _parted(given)
            return encoded(sample), told


_HELD: dict[str, _Held] = {}
_NUMBERS = itertools.count(1)


@contextlib.contextmanager
def held(samples: Iterable[Any], around: Around = contextlib.nullcontext) -> Iterator[str]:
    """The name of these samples, which can be opened inside the block, by this process.

    Args:
        samples: a sequence, whose samples are asked for as they are used, or another iterable,
            which is kept whole. Each is an image of Pillow; an array, uint8 or uint16 (H, W),
            (H, W, C) or (C, H, W) for an image, any other as a .npy file holds it, with channels
            last where only the last axis is one of up to four; the path of a file; or a tuple of
            such, as a `TensorDataset` has them: alone, or with its class, or with a mapping of
            columns.
        around: the context in which a sequence is asked for a sample.
    """
    indexed = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    name = f"{MEMORY}{next(_NUMBERS)}"
    _HELD[name] = _Held(samples if indexed else list(samples), around)  # type: ignore[arg-type]
    try:
        yield name
    finally:
        del _HELD[name]


class HeldSamples(Source):
    """Samples that are held, named after their places, so that their order stays."""

    portable = False

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.name in _HELD

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held, self._told = _HELD[path.name], dict[int, Mapping[str, Any]]()
        self._shapes: set[tuple[int, ...]] | None = None

    def entries(self) -> Iterator[Entry]:
        found, self._shapes = [], set()
        for k in range(len(self._held)):
            try:
                file, told = self._held.known(k)
                told = plain(told)
                if isinstance(told, Mapping):
                    self._told[k] = {str(name): value for name, value in told.items()}
                    told = told.get(CLASS)
                if isinstance(told, (list, tuple)):
                    raise TypeError(f"its class is {len(told)} values, not a name or a number")
            except (TypeError, ValueError, OSError) as error:
                raise DataError(f"sample {k} of {len(self._held):,}: {error}") from error
            if file.shape is not None:
                self._shapes.add(file.shape)
            label = None if told is None else str(told)
            found.append(Entry(f"{k:09d}{file.suffix}", len(file.data), str(k), label=label))
        if self._told:
            self.tables = (self.path.name,)
        if any(entry.label is not None for entry in found):  # those without have none
            found = [entry._replace(label=entry.label or "") for entry in found]
        yield from found

    def read(self, entry: Entry) -> bytes:
        try:
            return self._held.known(int(entry.key))[0].data
        except LookupError:  # there are fewer than there were
            raise FileNotFoundError(entry.key) from None

    def shapes(self) -> Collection[tuple[int, ...]]:
        if self._shapes is None:
            list(self.entries())
        return self._shapes or ()

    def told(self, wanted: Collection[str] | None) -> Iterator[MetadataRow]:
        names = [entry.name for entry in self.entries()]
        for k, values in self._told.items():
            yield MetadataRow(self.path.name, k + 1, names[k], values)


def _parted(given: Any) -> tuple[Any, Any]:
    """A sample, and its class or columns, if any."""
    if not isinstance(given, (tuple, list)) or isinstance(given, File) or len(given) not in (1, 2):
        return given, None
    return given[0], given[1] if len(given) == 2 else None


def encoded(sample: Any) -> File:
    """A sample as a file.

    Raises:
        TypeError: it is nothing that can be one.
        OSError: the file that it names cannot be read.
    """
    if isinstance(sample, File):
        return sample
    if isinstance(sample, (str, os.PathLike)):
        path = Path(sample)
        return File(path.read_bytes(), path.suffix.lower())
    if isinstance(sample, Image.Image):
        return of_image(sample)
    if hasattr(sample, "detach"):  # a tensor of PyTorch
        sample = sample.detach().cpu()
    if hasattr(sample, "__array__"):
        return _of_array(np.asarray(sample))
    what = "None" if sample is None else f"a {type(sample).__name__}"
    raise TypeError(f"{what} is no image of Pillow, no array and no path")


def of_image(image: Image.Image, compress_level: int = 1) -> File:
    """An image of Pillow as a file."""
    buffer = io.BytesIO()
    if image.mode in PNG_MODES:
        image.save(buffer, "png", compress_level=compress_level, exif=image.getexif())
        return File(buffer.getvalue(), ".png")
    image.save(buffer, "tiff", icc_profile=image.info.get("icc_profile"))
    return File(buffer.getvalue(), ".tif")


def _of_array(values: Array) -> File:
    if (picture := _picture(values)) is not None:
        return picture
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return File(buffer.getvalue(), ".npy", values.shape)


def _picture(values: Array) -> File | None:
    """An array of levels as an image, where its shape is that of one."""
    if values.dtype not in (np.uint8, np.uint16) or values.ndim not in (2, 3) or 0 in values.shape:
        return None
    if values.ndim == 2:
        values = values[..., None]
    else:
        try:
            layout = layout_of([values.shape])
        except InvalidArgument:
            return None
        values = values if layout else np.moveaxis(values, 0, -1)
    channels = values.shape[-1]
    if channels > 4:
        return None
    if values.dtype == np.uint8:
        return of_image(Image.fromarray(np.squeeze(values, -1) if channels == 1 else values))
    if channels in (2, 4):
        return None  # Pillow writes no such PNG
    medium, planes = MEDIA["image"], np.ascontiguousarray(np.moveaxis(values, -1, 0))
    return File(medium.encode(planes, medium.space(planes[None])), ".png")


SOURCE = HeldSamples
