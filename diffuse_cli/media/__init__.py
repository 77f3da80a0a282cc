"""Kinds of data, one medium a file, as `Medium` describes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.errors import lookup
from diffuse_cli.core.registry import Modules
from diffuse_cli.core.space import Space as Space
from diffuse_cli.media._fitting import FITS as FITS

Array = npt.NDArray[Any]
Size = tuple[int, ...]

LARGE = 2**24
"""Samples of this many elements or bytes are read one at a time, which bounds the memory."""
one_large = threading.RLock()
freely = contextlib.nullcontext()


class Large(Exception):
    """A sample too large to be read beside other processes."""


@dataclass(frozen=True)
class Asked:
    """How samples are read.

    Attributes:
        size: None while all samples so far have one small size.
        channels: None for those of the file.
        background: RGB (0 ... 255) behind transparent pixels and around padded samples.
        fit: a name in `FITS`, for samples of another shape than `size`.
        shared: other processes read too; raise `Large` for a large sample.
    """

    size: Size | None = None
    channels: int | None = None
    background: tuple[int, ...] = (255, 255, 255)
    fit: str = "crop"
    shared: bool = False


class Read(NamedTuple):
    """One sample (C, *size), a 16-byte hash of its content, the file's mode, size and channels, and
    what is wrong with the sample: constants of `unusable`."""

    values: Array
    digest: bytes
    mode: str
    size: Size
    channels: int
    remarks: tuple[str, ...] = ()


class Medium(Protocol):
    """A module of this folder.

    It may have `prepare()`, called before a process reads, `check(space)`, which raises
    `InvalidArgument` for a space whose samples it cannot write, `FITS`, the names of the fits that
    it knows (`crop` alone without it), and `ADVICE`, what to do with files that it does not read,
    by extension.

    Attributes:
        EXTENSIONS: of the files it reads, such as `.png`.
        SUFFIX: of the files it writes.
        ONE, MANY: the words for a sample and for several.
        KEPT_SIDE: samples keep their size if all have the same and no side is longer; others get
            this size.
    """

    EXTENSIONS: frozenset[str]
    SUFFIX: str
    ONE: str
    MANY: str
    KEPT_SIDE: int

    def read(self, data: bytes, asked: Asked) -> Read:
        """The sample in a file's bytes, with the channels and size asked for.

        Raises:
            Unusable: with the reason.
            Large: too large to be read in a shared process.
        """
        ...

    def fit(self, values: Array, asked: Asked) -> Array:
        """A sample at the size asked for."""
        ...

    def space(self, samples: Array) -> Space:
        """The space of stored samples (N, C, *size)."""
        ...

    def encode(self, sample: Array, space: Space) -> bytes:
        """A stored sample (C, *size) as a file's bytes, which depend on nothing else."""
        ...

    def look(self, samples: Array, space: Space) -> npt.NDArray[np.uint8]:
        """Stored samples (N, C, *size) as pictures, grey (N, 1, H, W) or RGB (N, 3, H, W)."""
        ...


MEDIA: Mapping[str, Medium] = Modules("media", __name__, __path__)


def prepare(medium: str) -> None:
    """Call a medium's `prepare`, if it has one."""
    getattr(MEDIA[medium], "prepare", lambda: None)()


def check(space: Space) -> None:
    """Refuse a space whose medium is unknown, or cannot write its samples.

    Raises:
        InvalidArgument
    """
    getattr(lookup(MEDIA, space.medium, "medium"), "check", lambda _: None)(space)


def check_fit(medium: str, fit: str) -> None:
    """Refuse a fit that a medium does not know.

    Raises:
        InvalidArgument
    """
    kind = MEDIA[medium]
    lookup(dict.fromkeys(getattr(kind, "FITS", ["crop"])), fit, "fit")


def by_extension() -> dict[str, str]:
    """The medium of each file extension; `image` wins, then the first one listed."""
    names = sorted(MEDIA, key=lambda name: name != "image")
    return {e: name for name in reversed(names) for e in MEDIA[name].EXTENSIONS}


def advice() -> dict[str, str]:
    """What to do with files that no medium reads, by extension."""
    return {e: text for kind in MEDIA.values() for e, text in getattr(kind, "ADVICE", {}).items()}
