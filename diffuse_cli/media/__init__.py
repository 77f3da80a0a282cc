"""Kinds of data: one medium per module, described by `Medium`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128

from diffuse_cli.core import InvalidArgument, Modules, Registry
from diffuse_cli.core import Space as Space
from diffuse_cli.core.registry import lookup
from diffuse_cli.core.space import LONGEST_SIDE
from diffuse_cli.media.file_errors import ALONE, UNPACK, extension_of
from diffuse_cli.media.file_errors import Unusable as Unusable

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

OF_ARRAYS = ("L", "CL", "LC", "HW", "CHW", "HWC", "DHW", "CDHW", "DHWC")
"""Orders of axes. C is the channels. A layout without it has one channel."""

FEW = 4
"""Longest axis that may be the channels of an image."""

ALPHA, PAGES = "alpha", "pages"
OF_IMAGES = (ALPHA, PAGES)
"""`alpha:RRGGBB` keeps transparency, with the other channels on this background. `alpha` uses the
requested background. With `pages`, the pages of a TIFF are channels."""

LAYOUTS = (*OF_ARRAYS, *OF_IMAGES)

FIRST, LAST = {3: "CHW", 4: "CDHW"}, {3: "HWC", 4: "DHWC"}
"""Layouts with the channels first, the usual order, and last, by the number of axes."""


def infer_layout(shapes: Collection[tuple[int, ...]]) -> str | None:
    """Return the layout of arrays by their shapes, None for the usual layout.

    The channels are last if only the last axis has up to four entries.

    Raises:
        InvalidArgument: the last axis and another have up to four entries, or the arrays differ.
    """
    layouts = set[str | None]()
    for shape in (shape for shape in shapes if len(shape) in LAST):
        last, usual = shape[-1] <= FEW, min(shape[:-1]) <= FEW
        layouts |= {LAST[len(shape)]} if last else {None}
        layouts |= {None} if usual else set()
        if len(layouts) > 1:
            sides = " x ".join(map(str, shape))
            text = f": the channels of an array of {sides} may be its first axis or its last"
            front, back = FIRST[len(shape)], LAST[len(shape)]
            hint = f"Choose --layout {front} or {back}, in Python layout='{front}' or '{back}'"
            raise InvalidArgument(text, hint, argument="layout", code="missing_argument")
    return layouts.pop() if layouts else None


def layout_name(layout: str | None) -> str | None:
    """Return a layout without the color of its background."""
    return layout and layout.partition(":")[0]


def resolve_layout(layout: str | None, alpha: bool) -> str | None:
    """Return the layout of --layout, or `alpha` for --alpha.

    Raises:
        InvalidArgument: both are set, and differ.
    """
    if alpha and layout_name(layout) not in (None, ALPHA):
        text = f"is not for --layout {layout}"
        raise InvalidArgument(text, argument="alpha", code="options_conflict")
    return layout or (ALPHA if alpha else None)


# Bring a sample of another shape to a size.

Size = tuple[int, ...]
Lengths = tuple[float, ...]

Fit = Callable[[Size, Size], tuple[Lengths, Lengths]]
"""Function from a sample's size and the size of the result to two sizes: the part of the sample
that is kept, and the part of the result that it is scaled to. Both are at the center."""


def crop(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Cover the result, and cut off the rest of the sample."""
    scale = min(a / b for a, b in zip(sample_size, target_size, strict=True))
    return tuple(scale * side for side in target_size), target_size


def pad(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Keep the whole sample, and fill the rest of the result with the background."""
    scale = max(a / b for a, b in zip(sample_size, target_size, strict=True))
    return sample_size, tuple(side / scale for side in sample_size)


def stretch(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Scale each side independently."""
    return sample_size, target_size


FITS: Registry[Fit] = Registry("fits", {"crop": crop, "pad": pad, "stretch": stretch})


@dataclass(frozen=True)
class ReadSettings:
    """Read settings of samples.

    Attributes:
        size: the size of the result; None while all samples so far have one small size.
        channels: the channels of the result; None for the file's channels.
        background: RGB (0 ... 255) behind transparent pixels and around padded samples.
        fit: a name in the medium's `fits`, for samples whose shape differs from `size`.
        layout: one of the medium's `layouts`; None for the file's layout.
        numbers: the name of the NumPy type of the values; None for any type.
        rate: the sample rate of sounds, in Hz; None for the file's rate.
    """

    size: Size | None = None
    channels: int | None = None
    background: tuple[int, ...] = (255, 255, 255)
    fit: str = "crop"
    layout: str | None = None
    numbers: str | None = None
    rate: int | None = None


class Read(NamedTuple):
    """A sample and the facts of its file.

    Attributes:
        values: the sample (C, *size).
        digest: a 16-byte hash of its content.
        mode: the file's mode.
        size: the file's size in reverse, as in (width, height).
        channels: the file's channels.
        remarks: flaws of the sample, constants of `file_errors`.
        layout: the layout, if the medium has several.
    """

    values: Array
    digest: bytes
    mode: str
    size: Size
    channels: int
    remarks: tuple[str, ...] = ()
    layout: str | None = None


def content_digest(kind: str, values: Array) -> bytes:
    """Return a 16-byte hash of a kind and an array.

    XXH3 takes a fiftieth of the time of decoding, and a cryptographic hash takes half of it. A
    cryptographic hash would only protect users against their own images.
    """
    hasher = xxh3_128(f"{kind}\n".encode())
    hasher.update(np.ascontiguousarray(values).data)
    return hasher.digest()


Settle: TypeAlias = Callable[[ReadSettings, Iterable[bytes]], tuple[ReadSettings, str]]


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A kind of data: `MEDIUM` of a module of this folder, or of another package.

    Attributes:
        extensions: the extensions of files that it reads, such as `.png`.
        suffix: the extension of files that it writes.
        one, many: the singular and the plural noun for samples.
        sides: the default size for each possible number of dimensions. Without `--size`, samples
            keep a common size whose sides are no longer, and get the default size otherwise.
        read: returns the sample in a file's bytes, with the requested channels and size. It raises
            `Unusable` with the reason.
        fit: returns a sample at the requested size.
        space: returns the space of stored samples (N, C, *size). The mean and standard deviation
            of floats are placeholders, because they are measured afterwards.
        encode: returns the bytes of a file for a stored sample (C, *size), which depend only on
            the sample and its space.
        look: returns stored samples (N, C, *size) as images, grey (N, 1, H, W) or RGB (N, 3, H, W).
        prepare: a function to call before a process reads.
        check: raises `InvalidArgument` for a space whose samples cannot be written.
        settled: completes a request from some files, and describes its choices for a notice.
        fits: the available fits, by name.
        advice: hints for files that it cannot read, by extension.
        rates: the possible rates of samples, in Hz. Empty for samples without a rate.
        layouts: the names of the possible orders of axes in files.
        mixed: whether samples of one channel and of several can be in one data set.
        alike: the layouts whose samples must all have the same channels, despite `mixed`. They have
            no `kinds` and no `channel_names`.
        kinds: the names of samples by their number of channels.
        brought: the numbers of channels that samples can be converted to, by layout. Any if empty.
        bits: the numbers of bits per level that `--bits` can choose. Levels of a file are scaled to
            them. Without `--bits`, samples have the bits of the file with the fewest.
        claimed: extensions of another medium's files that it reads instead if `claims` is true for
            their bytes.
        unpacked: whether samples take the same memory as their files.
        fitted: the participle for a sample that was changed to another size.
        cropped: the place of the crop, in words.
        judged: whether networks trained on photographs can judge samples.
        unjudged: the layouts that these networks cannot judge.
        suffixes: the extensions of files by layout, instead of `suffix`.
        flipped: the direction in which `--flip` mirrors samples, if it is not obvious.
        augmentations: the names of the augmentations that suit it, in the order of application.
        channel_names: the names of the channels, by their number.
        low_high: the adjectives for samples whose values are too small, or too large.
        points: the plural noun for the elements of a sample.
    """

    extensions: frozenset[str]
    suffix: str
    one: str
    many: str
    sides: Mapping[int, int]
    read: Callable[[bytes, ReadSettings], Read]
    fit: Callable[[Array, ReadSettings], Array]
    space: Callable[[Array], Space]
    encode: Callable[[Array, Space], bytes]
    look: Callable[[Array, Space], npt.NDArray[np.uint8]]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[Space], None] = lambda _: None
    settled: Settle = lambda settings, _: (settings, "")
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
    cropped: str = "at the center"
    judged: bool = True
    unjudged: Sequence[str] = ()
    suffixes: Mapping[str | None, str] = field(default_factory=dict)
    flipped: str = ""
    augmentations: Sequence[str] = ()
    channel_names: Mapping[int, Sequence[str]] = field(default_factory=dict)
    low_high: tuple[str, str] = ("low", "high")
    points: str = "points"

    @property
    def most_channels(self) -> int:
        """The most channels that samples can be converted to, of media that convert any."""
        return self.brought[None][-1]

    def resolve_settings(self, settings: ReadSettings, bits: int | None = None) -> ReadSettings:
        """Return a request with a valid number of sides, and the type for `bits`.

        Raises:
            InvalidArgument: the medium does not support the request.
        """
        many, layout = self.many, layout_name(settings.layout)
        lookup(self.fits, settings.fit, "fit")
        if layout == ALPHA and ALPHA not in self.layouts:
            text = f": {many} have no transparency"
            raise InvalidArgument(text, argument="alpha", code="option_unsuited")
        if layout is not None:
            if not self.layouts:
                text = f"{many} have no layout"
                raise InvalidArgument(text, argument="layout", code="option_unsuited")
            lookup(dict.fromkeys(self.layouts), layout, "layout")
        channels, channel_counts = settings.channels, self.brought.get(layout)
        if channels is not None and channel_counts and channels not in channel_counts:
            kind = f"{many} with transparency" if layout == ALPHA else many
            hint = "--alpha keeps transparency" if channels in self.brought.get(ALPHA, ()) else ""
            text = f": {kind} have {' or '.join(map(str, channel_counts))}, not {channels}"
            raise InvalidArgument(text, hint, argument="channels")
        if settings.rate is not None and not self.rates:
            raise InvalidArgument(f"{many} have no rate", argument="rate", code="option_unsuited")
        if settings.rate is not None and settings.rate not in self.rates:
            text = f"must be {self.rates[0]:,} to {self.rates[-1]:,} Hz"
            raise InvalidArgument(text, argument="rate")
        size, numbers = self.resolve_size(settings.size), settings.numbers
        if numbers is None and bits is not None:
            if bits not in self.bits:
                text = f"{many} have {' or '.join(map(str, self.bits))} bits, not {bits}"
                text = text if self.bits else f"{many} keep the numbers of their files"
                raise InvalidArgument(text, argument="bits")
            numbers = f"uint{bits}"
        return replace(settings, size=size, numbers=numbers)

    def resolve_size(self, size: Size | None) -> Size | None:
        """Return a size with a valid number of sides. One-dimensional samples take equal sides.

        Raises:
            InvalidArgument: the number of sides is invalid, or a side is too long.
        """
        if size is None:
            return None
        long = 1 in self.sides and size[0] > LONGEST_SIDE  # as only one side can be
        if len(set(size)) == 1 and ([*self.sides] == [1] or long):
            size = size[:1]
        if len(size) > 1 and max(size) > LONGEST_SIDE:
            raise InvalidArgument(f"a side is 1 to {LONGEST_SIDE} long", argument="size")
        if len(size) not in self.sides:
            sides = "side" if [*self.sides] == [1] else "sides"
            text = f"{self.many} have {' or '.join(map(str, self.sides))} {sides}, not {len(size)}"
            raise InvalidArgument(text, argument="size")
        return size


_HELPERS = ("array_figures", "figures", "file_errors")
MEDIA: Mapping[str, Medium] = Modules("media", __name__, __path__, _HELPERS, "MEDIUM")


def check(space: Space) -> None:
    """Check that the medium of a space exists and can write its samples.

    Raises:
        InvalidArgument: it does not, or cannot.
    """
    lookup(MEDIA, space.medium, "medium").check(space)


def check_fit(medium: str, fit: str) -> None:
    """Check that a medium supports a fit.

    Raises:
        InvalidArgument: the medium does not support it.
    """
    lookup(MEDIA[medium].fits, fit, "fit")


def can_judge(space: Space) -> bool:
    """Whether features of networks trained on photographs are meaningful for samples."""
    medium = MEDIA[space.medium]
    return medium.judged and space.layout not in medium.unjudged


def suffix(space: Space) -> str:
    """Return the extension of files in which samples of a space are written."""
    return (medium := MEDIA[space.medium]).suffixes.get(space.layout, medium.suffix)


def describe_space(space: Space) -> str:
    """Return the kind of samples of a space: `28x28, grey`, or `5120 at 8,000 Hz, mono`."""
    medium, count = MEDIA[space.medium], space.channels
    rate = f" at {space.rate:,} Hz" if space.rate else ""
    kind = f"{count} channel{'s' * (count != 1)}"
    if space.layout not in medium.alike:
        kind = medium.kinds.get(count, kind)
    limits = ", levels {:,} to {:,}".format(*space.limits) if space.limits else ""
    return f"{space.size_text}{rate}, {kind}{limits}"


def settings_for(space: Space) -> dict[str, Any]:
    """Return the read settings for a space, keywords of `ReadSettings` and `data.read_images`."""
    return {
        "size": space.size,
        "channels": space.channels,
        "layout": space.layout,
        "numbers": space.stored_dtype,
        "rate": space.rate,
    }


def mask_settings_for(space: Space) -> dict[str, Any]:
    """Return the read settings for a mask of one channel, keywords like those of `settings_for`."""
    layout = None if MEDIA[space.medium].mixed else space.layout
    return {**settings_for(space), "channels": 1, "numbers": None, "layout": layout}


def media_by_extension() -> dict[str, str]:
    """Return the medium of each file extension. `image` wins, then the first medium listed."""
    media = sorted(MEDIA.items(), key=lambda item: item[0] != "image")
    return {e: name for name, medium in reversed(media) for e in medium.extensions}


def advice() -> dict[str, str]:
    """Return hints for files that no medium can read, by extension."""
    return {e: text for kind in MEDIA.values() for e, text in kind.advice.items()}


def advice_for(name: str) -> str:
    """Return the hint for one file or folder that no medium can read, empty if there is none."""
    text = advice().get(extension_of(name), "")
    return "" if text in (ALONE, UNPACK) else text[:1].upper() + text[1:]


def render_samples(space: Space, samples: Array) -> Array:
    """Return stored samples as images, uint8 (N, 1 or 3, H, W)."""
    return MEDIA[space.medium].look(samples, space)
