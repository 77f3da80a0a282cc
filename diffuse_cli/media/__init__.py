"""Kinds of data, one medium a file, as `Medium` describes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.registry import InvalidArgument, Modules, lookup
from diffuse_cli.core.space import LONGEST_SIDE
from diffuse_cli.core.space import Space as Space
from diffuse_cli.media.shapes import ALPHA as ALPHA
from diffuse_cli.media.shapes import FITS as FITS
from diffuse_cli.media.shapes import Fit as Fit
from diffuse_cli.media.shapes import asked_for as asked_for
from diffuse_cli.media.shapes import crop
from diffuse_cli.media.shapes import layout_of as layout_of
from diffuse_cli.media.shapes import named as named

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
        fit: a name in the medium's `FITS`, for samples of another shape than `size`.
        shared: other processes read too; raise `Large` for a large sample.
        layout: one of the medium's `LAYOUTS`; None for that of the file.
        numbers: the name of a NumPy type that holds the numbers to be read; None for any.
        rate: of sounds, in Hz; None for that of the file.
    """

    size: Size | None = None
    channels: int | None = None
    background: tuple[int, ...] = (255, 255, 255)
    fit: str = "crop"
    shared: bool = False
    layout: str | None = None
    numbers: str | None = None
    rate: int | None = None


class Read(NamedTuple):
    """One sample (C, *size), a 16-byte hash of its content, the file's mode, size in reverse, as in
    (width, height), and channels, what is wrong with the sample (constants of `file_errors`), and
    its layout, if the medium has several."""

    values: Array
    digest: bytes
    mode: str
    size: Size
    channels: int
    remarks: tuple[str, ...] = ()
    layout: str | None = None


class Medium(Protocol):
    """A module of this folder.

    It may have `prepare()`, called before a process reads, `check(space)`, which raises
    `InvalidArgument` for a space whose samples it cannot write, `settled(asked, files)`, which
    completes what is asked for from some files and says in words what it chose, and these
    attributes:

    - `FITS`, the fits that it knows, by name (`crop` alone without it);
    - `ADVICE`, what to do with files that it does not read, by extension;
    - `DIMS`, the numbers of dimensions that samples can have (two without it);
    - `RATES`, those that its samples can have, in Hz (none without it);
    - `LAYOUTS`, the names of the orders of axes that its files can have (none without it);
    - `MIXED`, whether a sample of one channel goes with samples of several (no without it);
    - `KINDS`, what samples of so many channels are called;
    - `BROUGHT`, the numbers of channels that its samples can be brought to, by layout (any without
      it);
    - `BITS`, the numbers of bits that a sample's levels can have, if `--bits` can choose: files of
      fewer are scaled to more, and the other way round. Without being asked, samples have those of
      the file with the fewest;
    - `CLAIMED`, extensions of another medium's files that it reads instead if its `claims(data)` is
      true of their bytes (none without it);
    - `UNPACKED`, whether samples take as much memory as their files (no without it);
    - `FITTED`, what becomes of a sample of another size (`resized` without it), and `CROPPED`,
      where it is cropped (`at the centre` without it);
    - `JUDGED`, whether networks that know photographs can judge samples (yes without it), and
      `UNJUDGED`, layouts of which they cannot;
    - `ALIKE`, layouts whose samples all have the same channels, whatever `MIXED` says;
    - `SUFFIXES`, of the files it writes of a layout, instead of `SUFFIX`;
    - `PLAYED`, the type of its files for a browser that plays them (not played without it);
    - `FLIPPED`, how `--flip` mirrors samples, if that has to be said;
    - `CHANNELS`, the names of the channels of samples of so many (numbers without it);
    - `LOW_HIGH`, what samples are whose numbers are too small, or too large (`low`, `high`);
    - `POINTS`, what samples are made of (`points` without it).

    Attributes:
        EXTENSIONS: of the files it reads, such as `.png`.
        SUFFIX: of the files it writes.
        ONE, MANY: the words for a sample and for several.
        KEPT_SIDE: samples keep their size if all have the same and no side is longer; others get
            this size. A number, or one by the number of dimensions.
    """

    EXTENSIONS: frozenset[str]
    SUFFIX: str
    ONE: str
    MANY: str
    KEPT_SIDE: int | Mapping[int, int]

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
        """The space of stored samples (N, C, *size); the mean and deviation of floats are measured
        afterwards, any will do."""
        ...

    def encode(self, sample: Array, space: Space) -> bytes:
        """A stored sample (C, *size) as a file's bytes, which depend on nothing else."""
        ...

    def look(self, samples: Array, space: Space) -> npt.NDArray[np.uint8]:
        """Stored samples (N, C, *size) as pictures, grey (N, 1, H, W) or RGB (N, 3, H, W)."""
        ...


MEDIA: Mapping[str, Medium] = Modules(
    "media", __name__, __path__, helpers=("array_figures", "figures", "file_errors", "shapes")
)


def prepare(medium: str) -> None:
    """Call a medium's `prepare`, if it has one."""
    getattr(MEDIA[medium], "prepare", lambda: None)()


def check(space: Space) -> None:
    """Refuse a space whose medium is unknown, or cannot write its samples.

    Raises:
        InvalidArgument
    """
    getattr(lookup(MEDIA, space.medium, "medium"), "check", lambda _: None)(space)


def settled(medium: str, asked: Asked, files: Iterable[bytes]) -> tuple[Asked, str]:
    """What is asked for, with what a medium decides from some files, and that in words."""
    kind = MEDIA[medium]
    found: tuple[Asked, str] = getattr(kind, "settled", lambda asked, _: (asked, ""))(asked, files)
    return found


def check_fit(medium: str, fit: str) -> None:
    """Refuse a fit that a medium does not know.

    Raises:
        InvalidArgument
    """
    lookup(fits(medium), fit, "fit")


def fits(medium: str) -> Mapping[str, Fit]:
    """The fits that a medium knows, by name."""
    own: Mapping[str, Fit] = getattr(MEDIA[medium], "FITS", {"crop": crop})
    return own


def check_layout(medium: str, layout: str | None) -> None:
    """Refuse an order of axes that a medium does not know.

    Raises:
        InvalidArgument
    """
    known = getattr(MEDIA[medium], "LAYOUTS", ())
    if named(layout) == ALPHA and ALPHA not in known:
        raise InvalidArgument(f": {MEDIA[medium].MANY} have no transparency", argument="alpha")
    if layout is not None and not known:
        raise InvalidArgument(f"{MEDIA[medium].MANY} have no layout", argument="layout")
    if layout is not None:
        lookup(dict.fromkeys(known), str(named(layout)), "layout")


def check_channels(medium: str, channels: int | None, layout: str | None) -> None:
    """Refuse channels that samples of a medium and a layout cannot be brought to.

    Raises:
        InvalidArgument
    """
    kind = MEDIA[medium]
    brought: Mapping[str | None, Sequence[int]] = getattr(kind, "BROUGHT", {})
    known = brought.get(named(layout))
    if channels is not None and known and channels not in known:
        what = f"{kind.MANY} with transparency" if named(layout) == ALPHA else kind.MANY
        hint = "--alpha keeps transparency" if channels in brought.get(ALPHA, ()) else ""
        text = f": {what} have {' or '.join(map(str, known))}, not {channels}"
        raise InvalidArgument(text, hint, argument="channels")


def check_bits(medium: str, bits: int | None) -> str | None:
    """The name of the NumPy type of levels of so many bits; None without any.

    Raises:
        InvalidArgument: bits that a medium's levels cannot have.
    """
    if bits is None:
        return None
    known = getattr(MEDIA[medium], "BITS", ())
    if bits not in known:
        text = f"{MEDIA[medium].MANY} have {' or '.join(map(str, known))} bits, not {bits}"
        if not known:
            text = f"{MEDIA[medium].MANY} keep the numbers of their files"
        raise InvalidArgument(text, argument="bits")
    return f"uint{bits}"


def check_rate(medium: str, rate: int | None) -> None:
    """Refuse a rate of a medium without one.

    Raises:
        InvalidArgument
    """
    known: Sequence[int] = getattr(MEDIA[medium], "RATES", ())
    if rate is not None and not known:
        raise InvalidArgument(f"{MEDIA[medium].MANY} have no rate", argument="rate")
    if rate is not None and rate not in known:
        raise InvalidArgument(f"must be {known[0]:,} to {known[-1]:,} Hz", argument="rate")


def checked_size(medium: str, size: Size | None) -> Size | None:
    """A size with as many sides as samples of a medium have; equal sides stand for one.

    Raises:
        InvalidArgument: more or fewer sides, or one that is too long.
    """
    kind = MEDIA[medium]
    dims = getattr(kind, "DIMS", (2,))
    if size is not None and dims == (1,) and len(set(size)) == 1:
        size = size[:1]
    if size is not None and len(size) > 1 and max(size) > LONGEST_SIDE:
        raise InvalidArgument(f"a side is 1 to {LONGEST_SIDE} long", argument="size")
    if size is not None and len(size) not in dims:
        raise InvalidArgument(
            f"{kind.MANY} have {' or '.join(map(str, dims))} "
            f"{'side' if dims == (1,) else 'sides'}, not {len(size)}",
            argument="size",
        )
    return size


def kept_side(medium: str, dims: int) -> int:
    """The longest side of samples that keep their size, by the number of their dimensions."""
    side = MEDIA[medium].KEPT_SIDE
    return side if isinstance(side, int) else side[dims]


def judged(space: Space) -> bool:
    """Whether features of networks that were trained on photographs say something of samples."""
    kind = MEDIA[space.medium]
    return bool(getattr(kind, "JUDGED", True)) and space.layout not in getattr(kind, "UNJUDGED", ())


def suffix(space: Space) -> str:
    """That of the files in which samples of a space are written."""
    kind = MEDIA[space.medium]
    return str(getattr(kind, "SUFFIXES", {}).get(space.layout, kind.SUFFIX))


def numbers_of(space: Space) -> str:
    """The name of the NumPy type in which samples of a space are stored."""
    if space.levels is None:
        return "float32"
    return "bool" if space.levels == 2 else "uint8" if space.levels <= 256 else "uint16"


def like(space: Space) -> dict[str, Any]:
    """How samples are read for a space: keywords of `Asked` and of `data.read_images`."""
    return {
        "size": space.size,
        "channels": space.channels,
        "layout": space.layout,
        "numbers": numbers_of(space),
        "rate": space.rate,
    }


def like_mask(space: Space) -> dict[str, Any]:
    """How a mask of samples is read: one channel of any numbers, keywords as those of `like`."""
    mixed = getattr(MEDIA[space.medium], "MIXED", False)
    layout = None if mixed else space.layout
    return {**like(space), "channels": 1, "numbers": None, "layout": layout}


def by_extension() -> dict[str, str]:
    """The medium of each file extension; `image` wins, then the first one listed."""
    names = sorted(MEDIA, key=lambda name: name != "image")
    return {e: name for name in reversed(names) for e in MEDIA[name].EXTENSIONS}


def claiming() -> dict[str, tuple[frozenset[str], Callable[[bytes], bool]]]:
    """Return `CLAIMED` and `claims` of the media that have them, by name."""
    kinds: dict[str, Any] = {name: kind for name, kind in MEDIA.items() if hasattr(kind, "CLAIMED")}
    return {name: (kind.CLAIMED, kind.claims) for name, kind in kinds.items()}


def advice() -> dict[str, str]:
    """What to do with files that no medium reads, by extension."""
    return {e: text for kind in MEDIA.values() for e, text in getattr(kind, "ADVICE", {}).items()}


def looks(space: Space, samples: Array) -> Array:
    """Stored samples as pictures, uint8 (N, 1 or 3, H, W)."""
    return MEDIA[space.medium].look(samples, space)
