"""Data sets of samples of one size, in memory or mapped from a file, and pairs of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core import TRANSFORMS, Space
from diffuse_cli.core.space import LEAST_STD
from diffuse_cli.data.sources.base import strip_common_folder
from diffuse_cli.data.summary import NAMED, Summary, format_names
from diffuse_cli.media import MEDIA, Array, Indices
from diffuse_cli.media.file_errors import public_name, strip_extension
from diffuse_cli.system import DataError, lookup, plural, show

HELD_OUT_OF = 20
HELD_OUT_MINIMUM = 40

FEW = 64
"""Number of samples for a rough estimate of the mean and standard deviation of floats."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """N samples, in the byte order of their names.

    Attributes:
        stored: (N, C, *size). An array, a read-only `numpy.memmap`, or a `stream.Stream`, which
            decodes samples as they are looked up.
        labels: int64 (N,), indices of `class_names`; -1 outside class folders.
        names: paths inside the source. Print them with `files.show`.
        digests: uint8 (N, 16), a hash of each sample before resizing.
        medium: a name in `MEDIA`.
        rows: codes of the metadata columns that the model is conditioned on, float32 (N, columns).
        layout: the axes of a sample in its file, if the medium supports several.
        transform: the transform of floats, a name in `TRANSFORMS`.
        rate: the sample rate of sounds, in Hz.
    """

    stored: npt.NDArray[Any]
    labels: Indices
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    summary: Summary
    medium: str = "image"
    rows: npt.NDArray[np.float32] | None = None
    layout: str | None = None
    transform: str | None = None
    rate: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def space(self) -> Space:
        """The space of each sample.

        The mean and standard deviation of floats come from the training samples only, the limits of
        levels from all samples.

        Raises:
            DataError: the transform is not defined for some floats, or a channel never varies.
            InvalidArgument: a transform is set for levels.
        """
        space = replace(self.estimated_space, transform=self.transform)
        if space.levels is not None:
            return limit_levels(space, self.stored)
        return measure_space(space, self.stored, np.flatnonzero(~self.held_out), self.names)

    @property
    def estimated_space(self) -> Space:
        """The space without a transform and limits.

        The mean and standard deviation of floats are estimates from a few samples.
        """
        space = MEDIA[self.medium].space(self.stored)
        space = replace(space, layout=self.layout, rate=self.rate)
        space = replace(space, quantities=self.summary.quantities)
        if space.levels is not None:
            return space
        mean, std = moments(space, self.stored, np.arange(min(len(self), FEW)), self.names)
        spread = np.where(std >= LEAST_STD, std, 1.0)
        return replace(space, mean=tuple(mean.tolist()), std=tuple(spread.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the set, independent of names, order and resizing."""
        return _fingerprint(self.digests)

    @cached_property
    def class_fingerprints(self) -> dict[str, str]:
        """The `fingerprint` of each class."""
        names = enumerate(self.class_names)
        return {name: _fingerprint(self.digests[self.labels == k]) for k, name in names}

    @cached_property
    def rows_fingerprint(self) -> str:
        """SHA-256 of the samples with their rows, independent of names and order. Else empty."""
        if self.rows is None:
            return ""
        codes = np.ascontiguousarray(self.rows, "<f4").view(np.uint8)
        return _fingerprint(np.concatenate([self.digests, codes], 1))

    @property
    def first_copies(self) -> Indices:
        """The index of the first sample with the same digest as each: int64 (N,)."""
        words = np.ascontiguousarray(self.digests).view(np.uint64)
        _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
        return first[inverse.reshape(-1)]

    @cached_property
    def label_counts(self) -> Indices:
        """The number of pixels with each label, for label maps: int64 (256,)."""
        counts = np.zeros(256, np.int64)
        for _, part in _parts(self.stored, np.arange(len(self))):
            counts += np.bincount(part.ravel(), minlength=256)
        return counts

    @cached_property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Mask of the samples that are never trained on, by `held_out_rule`: bool (N,)."""
        return mask_held_out(self.digests)


def select_evenly(indices: Indices, max_count: int) -> Indices:
    """Return at most `max_count` of the indices, evenly spaced from the first to the last."""
    if len(indices) <= max_count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, max_count).round().astype(np.int64)]


def mask_held_out(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return the mask of the samples that are never trained on, bool (N,), by digests (N, 16)."""
    if len(digests) < HELD_OUT_MINIMUM:
        return np.zeros(len(digests), dtype=np.bool_)
    numbers = (int.from_bytes(row.tobytes(), "big") for row in digests)
    chosen = np.fromiter((n % HELD_OUT_OF == 0 for n in numbers), np.bool_, len(digests))
    # Copies of one sample are all held out, or none are. Some samples must be left to train on.
    return np.zeros_like(chosen) if chosen.all() else chosen


def _fingerprint(digests: npt.NDArray[np.uint8], kind: bytes = b"") -> str:
    rows = sorted(row.tobytes() for row in digests)
    return sha256(kind + b"%d\n" % len(rows) + b"".join(rows)).hexdigest()


def held_out_rule() -> dict[str, Any]:
    """Return the held-out rule for the header of a model file."""
    return {
        "rule": f"xxh3-128 of the decoded pixels, modulo {HELD_OUT_OF}, is 0",
        "minimum": HELD_OUT_MINIMUM,
    }


# -- pairs ----------------------------------------------------------------------------------------

# Paired data: samples, each with a conditioning image that is found by its name.


@dataclass(frozen=True, eq=False)
class Pairs:
    """Conditioning images of N samples.

    Attributes:
        samples: the N samples.
        given: the conditioning images, at the size of the samples, in their own order.
        rows: int64 (N,), the index in `given` of each sample's image; -1 for none.
    """

    samples: Dataset
    given: Dataset
    rows: Indices

    @property
    def matched(self) -> npt.NDArray[np.bool_]:
        """Mask of the samples that have a conditioning image, bool (N,)."""
        mask: npt.NDArray[np.bool_] = self.rows >= 0
        return mask

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs, independent of names, order and resizing."""
        sample_digests = self.samples.digests[self.matched]
        given_digests = self.given.digests[self.rows[self.matched]]
        return _fingerprint(np.concatenate([sample_digests, given_digests], 1), b"pairs ")

    def __getitem__(self, indices: Indices) -> Array:
        """Return the conditioning images of `matched` samples, as stored: (B, C, *size)."""
        images: Array = self.given.stored[self.rows[indices]]
        return images

    def describe_unpaired(self) -> Iterator[str]:
        """Yield a sentence for each side that has images without a pair."""
        used = np.zeros(len(self.given), np.bool_)
        used[self.rows[self.matched]] = True
        for side, mask in ((self.samples, ~self.matched), (self.given, ~used)):
            if count := int(mask.sum()):
                unpaired = [public_name(side.names[k]) for k in np.flatnonzero(mask)[:NAMED]]
                names = format_names(unpaired, count)
                text = f"{plural(count, 'image')} of {side.summary.source}"
                yield f"{text} without a pair, left out: {names}"


def match_pairs(samples: Dataset, given: Dataset) -> Pairs:
    """Find the conditioning image of each sample by its path, which may differ in the extension.

    If no paths are equal, they are compared below the folders that all files of a side share.

    Raises:
        DataError: no sample has a pair.
    """
    sides = samples.names, given.names
    for sample_names, given_names in (sides, [strip_common_folder(n, n) for n in sides]):
        rows = match_names(sample_names, given_names)
        if (rows >= 0).any():
            return Pairs(samples, given, rows)
    first = ", ".join(show(side.names[0]) for side in (samples, given))
    raise DataError(
        f"no image of {samples.summary.source} has a pair of the same name in "
        f"{given.summary.source}: for example {first}",
        "Use the same folders and names in both; the extensions may differ",
        code="data_mismatch",
    )


def match_members(samples: Dataset, members: Dataset, count: int) -> Indices:
    """Find the members NAME-00, NAME-01, ... of each sample NAME, as `match_pairs` does.

    Returns:
        The index in `members` of each member of each sample, int64 (N, count), -1 for none.

    Raises:
        DataError: no sample has all members.
    """
    sides = samples.names, members.names
    for sample_names, names in (sides, [strip_common_folder(n, n) for n in sides]):
        places = {strip_extension(name): k for k, name in enumerate(names)}
        stems = [strip_extension(name) for name in sample_names]
        rows = [[places.get(format_member(n, j), -1) for j in range(count)] for n in stems]
        if (members_rows := np.array(rows, np.int64)).min(1).max() >= 0:
            return members_rows
    ends = " to ".join(show(format_member(stems[0], j)) for j in (0, count - 1))
    raise DataError(
        f"no image of {samples.summary.source} has {count} members in {members.summary.source}: "
        f"for example {ends}",
        "Use the names of DATA with the number of the member, or fewer --members",
        code="data_mismatch",
    )


def format_member(stem: str, number: int) -> str:
    """Return the name of a member of a sample, without its extension."""
    return f"{stem}-{number:02d}"


def match_names(sample_names: Sequence[str], given_names: Sequence[str]) -> Indices:
    """Return the index in `given_names` of each name of `sample_names`, -1 for none.

    Names match with or without their extensions, and in any form of Unicode.
    """

    def stem(name: str) -> str:
        return unicodedata.normalize("NFC", strip_extension(name))

    whole = {name: k for k, name in enumerate(given_names)}
    stems = {stem(name): k for k, name in reversed(list(enumerate(given_names)))} | whole
    rows = [whole.get(name, stems.get(stem(name), -1)) for name in sample_names]
    return np.array(rows, np.int64)


# -- measuring ------------------------------------------------------------------------------------

# The exact scale of stored samples: the mean and standard deviation of floats, the limits of
# levels.

AT_ONCE = 2**22
"""Number of values that are measured at a time."""

DEEP = 65_536
"""Number of levels of 16 bits, which few samples use in full. 8 bits are always kept in full."""

NOISE = 2.0**-26
"""Standard deviation, relative to the mean, below which variation is rounding of 32-bit floats."""


def moments(
    space: Space, stored: Array, rows: Indices, names: Sequence[str]
) -> tuple[Array, Array]:
    """Return the mean and standard deviation of each channel of some samples, after the transform.

    Sums are in float64, over differences from the first sample's mean.

    Args:
        stored: all samples, (N, C, *size).
        rows: indices of the samples to measure.
        names: the names of all samples, for errors.

    Raises:
        DataError: the transform is not defined for some values.
    """
    shift = np.zeros(0)
    total, squares, count = np.zeros(space.channels), np.zeros(space.channels), 0
    for places, samples in _parts(stored, rows):
        values = _apply_transform(space, samples)
        wrong = ~np.isfinite(values).all(axis=(1, 2))
        if wrong.any():
            raise _transform_error(space, names[int(places[wrong][0])])
        if not count:
            shift = values[0].mean(1)
        differences = values - shift[:, None]
        total += differences.sum((0, 2))
        squares += np.square(differences).sum((0, 2))
        count += len(values) * values.shape[2]
    mean = total / count
    return mean + shift, np.sqrt(np.maximum(squares / count - mean**2, 0))


def measure_space(space: Space, stored: Array, rows: Indices, names: Sequence[str]) -> Space:
    """Return a space of floats with the `moments` of some samples.

    Raises:
        DataError: as in `moments`, or a channel never varies.
    """
    mean, std = moments(space, stored, rows, names)
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True), 1):
        if not spread > NOISE * abs(middle):
            raise DataError(
                f"channel {channel} of {space.channels} is {middle:.6g} everywhere: a model cannot "
                "learn it",
                "Remove that channel from the files",
            )
        if spread < LEAST_STD:
            raise DataError(
                f"channel {channel} of {space.channels} hardly varies: its standard deviation is "
                f"{spread:.3g}",
                f"Multiply the data by a constant: it must be at least {LEAST_STD:g}",
            )
    return replace(space, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def limit_levels(space: Space, stored: Array) -> Space:
    """Return a space of 65,536 levels with the limits of its samples, if they use less than half.

    A camera's 12 bits are an example. Any other space is returned as it is.

    Args:
        stored: the samples, (N, C, *size), held-out samples included, so that all are within.
    """
    if space.levels != DEEP:
        return space
    ends = set[int]()
    for _, part in _parts(stored, np.arange(len(stored))):
        ends |= {int(part.min()), int(part.max())}
    low, high = min(ends), max(ends)
    if low == high or high - low + 1 >= DEEP // 2:
        return space
    return replace(space, limits=(low, high))


def _parts(stored: Array, rows: Indices) -> Iterator[tuple[Indices, Array]]:
    """Yield some rows at a time, with the samples in them."""
    chunk_size = max(1, AT_ONCE // int(np.prod(stored.shape[1:])))
    for start in range(0, len(rows), chunk_size):
        yield (places := rows[start : start + chunk_size]), stored[places]


def _apply_transform(space: Space, samples: Array) -> Array:
    """Return samples after the transform of their space, float64 (n, C, values)."""
    values = samples.reshape(len(samples), space.channels, -1).astype(np.float64)
    if space.transform is None:
        return values
    import torch

    transformed: Array = TRANSFORMS[space.transform].forward(torch.from_numpy(values)).numpy()
    return transformed


def _transform_error(space: Space, name: str) -> DataError:
    transform = space.transform or "none"
    takes = lookup(TRANSFORMS, transform, "--transform").takes
    hint = "Pass --transform asinh, which takes any number" if transform == "log" else ""
    text = f"--transform {transform} is for {takes}, but {show(name)} has others"
    return DataError(text, hint, code="option_unsuited")
