"""What samples are: pictures, ... One medium a file.

A module of this folder reads a file's bytes into an array (C, *size), brings it to a size, says
which `Space` such arrays are in, writes a sample, and shows samples as pictures.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.registry import Modules
from diffuse_cli.core.space import Space as Space

Array = npt.NDArray[Any]
Size = tuple[int, ...]

LARGE = 2**24
"""Elements, or bytes of a file: such samples are read one at a time, which bounds the memory."""
one_large = threading.RLock()
freely = contextlib.nullcontext()


class Large(Exception):
    """A sample that a process which shares its memory with others must not read."""


@dataclass(frozen=True)
class Asked:
    """What every sample is to become.

    Attributes:
        size: None while all samples so far have one small size.
        channels: None for as many as the file has.
        background: the colour behind transparent pixels, red, green and blue of 255.
        shared: other processes read too, and none of them may take a `Large` sample.
    """

    size: Size | None = None
    channels: int | None = None
    background: tuple[int, ...] = (255, 255, 255)
    shared: bool = False


class Read(NamedTuple):
    """One sample: its array (C, *size), 16 bytes that name it whatever the file around it, and the
    file's own kind of numbers, size and channels."""

    values: Array
    digest: bytes
    mode: str
    size: Size
    channels: int


class Medium(Protocol):
    """What a file of this folder holds.

    Attributes:
        EXTENSIONS: of the files that it reads, such as `.png`.
        SUFFIX: of the files that it writes.
        ONE, MANY: what people call a sample, and several.
        KEPT_SIDE: samples that are all of one size up to this keep it; others become this size.
    """

    EXTENSIONS: frozenset[str]
    SUFFIX: str
    ONE: str
    MANY: str
    KEPT_SIDE: int

    def read(self, data: bytes, asked: Asked) -> Read:
        """The sample in a file's bytes, with the channels and the size that are asked for.

        Raises:
            Unusable: there is none, with the reason.
            Large: it must not be read here.
        """
        ...

    def fit(self, values: Array, size: Size) -> Array:
        """A sample brought to a size."""
        ...

    def space(self, samples: Array) -> Space:
        """What samples (N, C, *size) are, as they are stored."""
        ...

    def encode(self, sample: Array, space: Space) -> bytes:
        """The file of a stored sample (C, *size); equal samples give equal bytes."""
        ...

    def look(self, samples: Array, space: Space) -> npt.NDArray[np.uint8]:
        """Stored samples (N, C, *size) as pictures, grey (N, 1, H, W) or RGB (N, 3, H, W)."""
        ...


MEDIA: Mapping[str, Medium] = Modules("media", __name__, __path__)


def prepare(medium: str) -> None:
    """What a medium wants done in a process before it reads there: its `prepare`, if it has one."""
    getattr(MEDIA[medium], "prepare", lambda: None)()


def by_extension() -> dict[str, str]:
    """The medium that reads files of each extension; an extension of several is the image's."""
    names = sorted(MEDIA, key=lambda name: name != "image")
    found: dict[str, str] = {}
    for name in names:
        for extension in MEDIA[name].EXTENSIONS:
            found.setdefault(extension, name)
    return found
