"""Kinds of data, one medium per file, as `Medium` describes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128

from diffuse_cli.core.registry import InvalidArgument, Modules, lookup
from diffuse_cli.core.space import LONGEST_SIDE
from diffuse_cli.core.space import Space as Space
from diffuse_cli.media.file_errors import MEMORY, Unusable
from diffuse_cli.media.shapes import ALPHA as ALPHA
from diffuse_cli.media.shapes import FITS as FITS
from diffuse_cli.media.shapes import Fit as Fit
from diffuse_cli.media.shapes import asked_for as asked_for
from diffuse_cli.media.shapes import crop
from diffuse_cli.media.shapes import layout_of as layout_of
from diffuse_cli.media.shapes import named as named
from diffuse_cli.system.memory import out_of_memory

Array = npt.NDArray[Any]
Size = tuple[int, ...]

LARGE = 2**24
"""Samples of this many elements or bytes are read one at a time, which bounds the memory."""
_one_large = threading.RLock()


class Large(Exception):
    """A sample too large to be read beside other processes."""


@contextlib.contextmanager
def alone(large: bool, shared: bool = False) -> Iterator[None]:
    """Read a large sample inside the block, while no other thread reads one.

    Raises:
        Large: in a process that is shared.
    """
    if large and shared:
        raise Large
    with _one_large if large else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def failing_as(reason: str) -> Iterator[None]:
    """Turn errors inside the block into `Unusable`."""
    try:
        yield
    except (Unusable, Large):
        raise
    except Exception as error:
        raise Unusable(MEMORY if out_of_memory(error) else reason) from None


@dataclass(frozen=True)
class Asked:
    """How samples are read.

    Attributes:
        size: None while all samples so far have one small size.
        channels: None for those of the file.
        background: RGB (0 ... 255) behind transparent pixels and around padded samples.
        fit: a name in the medium's `fits`, for samples of another shape than `size`.
        shared: other processes read too; raise `Large` for a large sample.
        layout: one of the medium's `layouts`; None for that of the file.
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


def content_digest(kind: str, values: Array) -> bytes:
    """Return a 16-byte hash of numbers of a kind.

    XXH3 takes a fiftieth of the time of decoding, a cryptographic hash half of it; that would
    protect only against the user's own images.
    """
    found = xxh3_128(f"{kind}\n".encode())
    found.update(np.ascontiguousarray(values).data)
    return found.digest()


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A kind of data: `MEDIUM` of a module of this folder, or of another package.

    Attributes:
        extensions: the extensions of files that it reads, such as `.png`.
        suffix: the extension of files that it writes.
        one, many: the words for a sample and for several.
        sides: the numbers of dimensions that samples can have, each with the size of samples that
            are not asked for one: they keep theirs if all have the same and no side is longer, and
            get this one otherwise.
        read: returns the sample in a file's bytes, with the channels and size asked for. It raises
            `Unusable` with the reason, or `Large` for a sample too large for a shared process.
        fit: returns a sample at the size asked for.
        space: returns the space of stored samples (N, C, *size). The mean and standard deviation
            of floats are measured afterwards, any will do.
        encode: returns the bytes of a file of a stored sample (C, *size), which depend on nothing
            else.
        look: returns stored samples (N, C, *size) as images, grey (N, 1, H, W) or RGB (N, 3, H, W).
        prepare: called before a process reads.
        check: raises `InvalidArgument` for a space whose samples cannot be written.
        settled: completes a request from some files, and says in words what it chose.
        fits: the fits that it knows, by name.
        advice: what to do with files that it does not read, by extension.
        rates: the rates that samples can have, in Hz; empty for samples without a rate.
        layouts: the names of the orders of axes that files can have.
        mixed: whether a sample of one channel goes with samples of several.
        alike: the layouts whose samples all have the same channels, whatever `mixed` says.
        kinds: the names of samples by their number of channels.
        brought: the numbers of channels that samples can be brought to, by layout; any without.
        bits: the numbers of bits of a sample's levels, if `--bits` can choose: files of fewer are
            scaled to more, and the other way round. Without `--bits`, samples have the bits of the
            file with the fewest.
        claimed: extensions of another medium's files that it reads instead if `claims` is true of
            their bytes.
        unpacked: whether samples take as much memory as their files.
        fitted: the word for what becomes of a sample of another size.
        cropped: where a sample is cropped, in words.
        judged: whether networks that know photographs can judge samples.
        unjudged: layouts of which they cannot.
        suffixes: the extensions of files of a layout, instead of `suffix`.
        played: the type of its files for a browser that plays them; empty for files not played.
        flipped: how `--flip` mirrors samples, if that has to be said.
        channel_names: the names of the channels, by their number.
        low_high: the words for samples whose numbers are too small, or too large.
        points: the word for what samples are made of.
    """

    extensions: frozenset[str]
    suffix: str
    one: str
    many: str
    sides: Mapping[int, int]
    read: Callable[[bytes, Asked], Read]
    fit: Callable[[Array, Asked], Array]
    space: Callable[[Array], Space]
    encode: Callable[[Array, Space], bytes]
    look: Callable[[Array, Space], npt.NDArray[np.uint8]]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[Space], None] = lambda _: None
    settled: Callable[[Asked, Iterable[bytes]], tuple[Asked, str]] = lambda asked, _: (asked, "")
    fits: Mapping[str, Fit] = field(default_factory=lambda: {"crop": crop})
    advice: Mapping[str, str] = field(default_factory=dict)
    rates: Sequence[int] = ()
    layouts: Sequence[str] = ()
    mixed: bool = False
    alike: Sequence[str] = ()
    kinds: Mapping[int, str] = field(default_factory=dict)
    brought: Mapping[str | None, Sequence[int]] = field(default_factory=dict)
    bits: Sequence[int] = ()
    claimed: frozenset[str] = frozenset()
    claims: Callable[[bytes], bool] = lambda _: False
    unpacked: bool = False
    fitted: str = "resized"
    cropped: str = "at the centre"
    judged: bool = True
    unjudged: Sequence[str] = ()
    suffixes: Mapping[str | None, str] = field(default_factory=dict)
    played: str = ""
    flipped: str = ""
    channel_names: Mapping[int, Sequence[str]] = field(default_factory=dict)
    low_high: tuple[str, str] = ("low", "high")
    points: str = "points"

    def checked(self, asked: Asked, bits: int | None = None) -> Asked:
        """Return a request with a size of as many sides as samples have, and numbers of `bits`.

        Raises:
            InvalidArgument: something that samples cannot have.
        """
        many, layout = self.many, named(asked.layout)
        lookup(self.fits, asked.fit, "fit")
        if layout == ALPHA and ALPHA not in self.layouts:
            raise InvalidArgument(f": {many} have no transparency", argument="alpha")
        if layout is not None and not self.layouts:
            raise InvalidArgument(f"{many} have no layout", argument="layout")
        if layout is not None:
            lookup(dict.fromkeys(self.layouts), layout, "layout")
        channels, known = asked.channels, self.brought.get(layout)
        if channels is not None and known and channels not in known:
            what = f"{many} with transparency" if layout == ALPHA else many
            hint = "--alpha keeps transparency" if channels in self.brought.get(ALPHA, ()) else ""
            text = f": {what} have {' or '.join(map(str, known))}, not {channels}"
            raise InvalidArgument(text, hint, argument="channels")
        if asked.rate is not None and not self.rates:
            raise InvalidArgument(f"{many} have no rate", argument="rate")
        if asked.rate is not None and asked.rate not in self.rates:
            text = f"must be {self.rates[0]:,} to {self.rates[-1]:,} Hz"
            raise InvalidArgument(text, argument="rate")
        size, numbers = self.checked_size(asked.size), asked.numbers
        if numbers is None and bits is not None:
            if bits not in self.bits:
                text = f"{many} have {' or '.join(map(str, self.bits))} bits, not {bits}"
                text = text if self.bits else f"{many} keep the numbers of their files"
                raise InvalidArgument(text, argument="bits")
            numbers = f"uint{bits}"
        return replace(asked, size=size, numbers=numbers)

    def checked_size(self, size: Size | None) -> Size | None:
        """Return a size with as many sides as samples have; equal sides stand for one.

        Raises:
            InvalidArgument: more or fewer sides, or one that is too long.
        """
        if size is None:
            return None
        if [*self.sides] == [1] and len(set(size)) == 1:
            size = size[:1]
        if len(size) > 1 and max(size) > LONGEST_SIDE:
            raise InvalidArgument(f"a side is 1 to {LONGEST_SIDE} long", argument="size")
        if len(size) not in self.sides:
            sides = "side" if [*self.sides] == [1] else "sides"
            text = f"{self.many} have {' or '.join(map(str, self.sides))} {sides}, not {len(size)}"
            raise InvalidArgument(text, argument="size")
        return size


_HELPERS = ("array_figures", "figures", "file_errors", "shapes")
MEDIA: Mapping[str, Medium] = Modules("media", __name__, __path__, _HELPERS, "MEDIUM")


def check(space: Space) -> None:
    """Refuse a space whose medium is unknown, or cannot write its samples.

    Raises:
        InvalidArgument
    """
    lookup(MEDIA, space.medium, "medium").check(space)


def check_fit(medium: str, fit: str) -> None:
    """Refuse a fit that a medium does not know.

    Raises:
        InvalidArgument
    """
    lookup(MEDIA[medium].fits, fit, "fit")


def judged(space: Space) -> bool:
    """Whether features of networks that were trained on photographs say something of samples."""
    medium = MEDIA[space.medium]
    return medium.judged and space.layout not in medium.unjudged


def suffix(space: Space) -> str:
    """Return the extension of files in which samples of a space are written."""
    medium = MEDIA[space.medium]
    return medium.suffixes.get(space.layout, medium.suffix)


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
    layout = None if MEDIA[space.medium].mixed else space.layout
    return {**like(space), "channels": 1, "numbers": None, "layout": layout}


def by_extension() -> dict[str, str]:
    """The medium of each file extension; `image` wins, then the first one listed."""
    names = sorted(MEDIA, key=lambda name: name != "image")
    return {e: name for name in reversed(names) for e in MEDIA[name].extensions}


def advice() -> dict[str, str]:
    """What to do with files that no medium reads, by extension."""
    return {e: text for kind in MEDIA.values() for e, text in kind.advice.items()}


def looks(space: Space, samples: Array) -> Array:
    """Stored samples as pictures, uint8 (N, 1 or 3, H, W)."""
    return MEDIA[space.medium].look(samples, space)
