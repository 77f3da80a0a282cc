"""Samples in the memory of a program, under a name such as `memory:1` instead of a path.

Each sample becomes the bytes of a file with the same values, and is then read as a file. So the
same images in a folder give the same fingerprint, held-out samples, classes and weights.
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
from PIL import Image, ImageOps

from diffuse_cli.config.parsers import to_plain
from diffuse_cli.core import InvalidArgument
from diffuse_cli.data.sources.base import Entry, MetadataRow, Source
from diffuse_cli.media import MEDIA, Array, infer_layout
from diffuse_cli.system import DataError
from diffuse_cli.system.run_reader import MEMORY

CLASS = "label"
"""Name of the metadata column that is the class."""

PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""Pillow's modes that a PNG can store. Other images become TIFFs."""


class SampleFile(NamedTuple):
    """Sample as the bytes of a file, and the extension that selects its medium."""

    data: bytes
    suffix: str


Around: TypeAlias = Callable[[], contextlib.AbstractContextManager[object]]


class _LockedSamples:
    """Samples that one thread at a time looks up, because not every sequence is thread-safe."""

    def __init__(self, samples: Sequence[Any], around: Around) -> None:
        self.samples, self.around, self.lock = samples, around, threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def read_sample(self, index: int) -> tuple[SampleFile, Any]:
        """Return a sample as a file, and its class or metadata."""
        with self.lock:
            with self.around():
                try:
                    value = self.samples[index]
                except StopIteration as error:  # it would end the generators that read
                    raise ValueError("reading it raised StopIteration") from error
            sample, label = _split_label(value)
            return encode_sample(sample), label


_HELD: dict[str, _LockedSamples] = {}
_NUMBERS = itertools.count(1)


@contextlib.contextmanager
def register_samples(
    samples: Iterable[Any], around: Around = contextlib.nullcontext
) -> Iterator[str]:
    """Yield a name by which this process can open these samples inside the block.

    Args:
        samples: a sequence, whose samples are looked up when they are used, or another iterable,
            which is kept whole. A sample is an image of Pillow, an array or the path of a file. An
            array of uint8 or uint16, (H, W), (H, W, C) or (C, H, W), is an image. Any other array
            is read as from a .npy file, with channels last if only the last axis has up to four
            entries. A sample can also be in a tuple, as from a `TensorDataset`, by itself or with
            its class or a mapping of columns.
        around: the context in which a sample of a sequence is looked up.
    """
    indexed = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    name = f"{MEMORY}{next(_NUMBERS)}"
    _HELD[name] = _LockedSamples(samples if indexed else list(samples), around)  # type: ignore[arg-type]
    try:
        yield name
    finally:
        del _HELD[name]


class InMemorySamples(Source):
    """Samples in memory, named after their indices, so that their order stays."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        return path.name in _HELD

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held, self._columns = _HELD[path.name], dict[int, Mapping[str, Any]]()

    def entries(self) -> Iterator[Entry]:
        entries = []
        for k in range(len(self._held)):
            try:
                file, label = self._held.read_sample(k)
                label = to_plain(label)
                if isinstance(label, Mapping):
                    self._columns[k] = {str(name): value for name, value in label.items()}
                    label = label.get(CLASS)
                if isinstance(label, (list, tuple)):
                    raise TypeError(f"the class has {len(label)} values, not one name or number")
            except (TypeError, ValueError, OSError) as error:
                raise DataError(f"sample {k} of {len(self._held):,}: {error}") from error
            label = None if label is None else str(label)
            entries.append(Entry(f"{k:09d}{file.suffix}", len(file.data), str(k), label=label))
        if self._columns:
            self.tables = (self.path.name,)
        if any(entry.label is not None for entry in entries):  # those without have none
            entries = [entry._replace(label=entry.label or "") for entry in entries]
        yield from entries

    def read(self, entry: Entry) -> bytes:
        try:
            return self._held.read_sample(int(entry.key))[0].data
        except LookupError:  # the sequence has become shorter
            raise FileNotFoundError(entry.key) from None

    def read_rows(self, selection: Collection[str] | None) -> Iterator[MetadataRow]:
        names = [entry.name for entry in self.entries()]
        for k, values in self._columns.items():
            yield MetadataRow(self.path.name, k + 1, names[k], values)


def _split_label(value: Any) -> tuple[Any, Any]:
    """Split a sample from its class or columns, if any."""
    packed = isinstance(value, (tuple, list)) and not isinstance(value, SampleFile)
    if not packed or len(value) not in (1, 2):
        return value, None
    return value[0], value[1] if len(value) == 2 else None


def encode_sample(sample: Any) -> SampleFile:
    """Encode a sample as a file.

    Raises:
        TypeError: the sample is not an image, an array or a path.
        ValueError: levels are masked.
        OSError: the file at the path cannot be read.
    """
    if isinstance(sample, SampleFile):
        return sample
    if isinstance(sample, (str, os.PathLike)):
        path = Path(sample)
        return SampleFile(path.read_bytes(), path.suffix.lower())
    if isinstance(sample, Image.Image):
        return encode_image(sample)
    if hasattr(sample, "detach"):  # a tensor of PyTorch
        sample = sample.detach().cpu()
    if np.ma.is_masked(sample):
        if sample.dtype.kind != "f":
            raise ValueError("it has masked values, which only floats can have")
        sample = sample.filled(np.nan)
    if hasattr(sample, "__array__"):
        values = np.asarray(sample)
        if (picture := _encode_levels(values)) is not None:
            return picture
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        return SampleFile(buffer.getvalue(), ".npy")
    kind = "None" if sample is None else f"a {type(sample).__name__}"
    raise TypeError(f"{kind} is not a Pillow image, an array or a path")


def encode_image(image: Image.Image, compress_level: int = 1) -> SampleFile:
    """Encode a Pillow image as a file."""
    buffer = io.BytesIO()
    if image.mode in PNG_MODES:
        image.save(buffer, "png", compress_level=compress_level, exif=image.getexif())
        return SampleFile(buffer.getvalue(), ".png")
    upright = ImageOps.exif_transpose(image)
    upright.save(buffer, "tiff", icc_profile=image.info.get("icc_profile"))
    return SampleFile(buffer.getvalue(), ".tif")


def _encode_levels(values: Array) -> SampleFile | None:
    """Encode an array of levels as an image, or return None if its shape is not an image's."""
    if values.dtype not in (np.uint8, np.uint16) or values.ndim not in (2, 3) or 0 in values.shape:
        return None
    if values.ndim == 2:
        values = values[..., None]
    else:
        try:
            layout = infer_layout([values.shape])
        except InvalidArgument:
            return None
        values = values if layout else np.moveaxis(values, 0, -1)
    channels = values.shape[-1]
    if channels > 4:
        return None
    if values.dtype == np.uint8:
        return encode_image(Image.fromarray(np.squeeze(values, -1) if channels == 1 else values))
    if channels in (2, 4):
        return None  # Pillow cannot write such a PNG
    medium, planes = MEDIA["image"], np.ascontiguousarray(np.moveaxis(values, -1, 0))
    return SampleFile(medium.encode(planes, medium.space(planes[None])), ".png")


SOURCE = InMemorySamples
