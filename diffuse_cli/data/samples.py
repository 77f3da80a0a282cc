"""A set of samples of one size, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.space import TRANSFORMS, Space
from diffuse_cli.data.sources.entries import below_common
from diffuse_cli.data.summary import NAMED, Summary, listed, plural
from diffuse_cli.media import MEDIA
from diffuse_cli.system.errors import DataError, lookup
from diffuse_cli.system.files import show

HELD_OUT_OF = 20
HELD_OUT_MINIMUM = 40

FEW = 64
"""Samples that say roughly how floats spread."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """N samples, in the byte order of their names.

    Attributes:
        stored: (N, C, *size); an array, a read-only `numpy.memmap`, or a `streaming.Streamed`,
            which decodes samples as they are looked up.
        labels: int64 (N,), indices of `class_names`; -1 outside class folders.
        names: paths inside the source; print them with `files.show`.
        digests: uint8 (N, 16), a hash of each sample before resizing.
        medium: its name in `MEDIA`.
        rows: what tables say of each, for a model that is told it: codes of its columns, float32
            (N, columns).
        layout: the axes of a sample in its file, if the medium knows several.
        transform: of floats, a name in `TRANSFORMS`.
        rate: of sounds, in Hz.
    """

    stored: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
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
        """The space of each sample; the mean and deviation of floats are those of the samples that
        are trained on, the limits of levels those of all.

        Raises:
            DataError: floats that the transform is not defined for, or that never vary.
            InvalidArgument: a transform of levels.
        """
        found = replace(self.unmeasured, transform=self.transform)
        if found.levels is not None:
            return limited(found, self.stored)
        return measured(found, self.stored, np.flatnonzero(~self.held_out), self.names)

    @property
    def unmeasured(self) -> Space:
        """The space without a transform and limits, and with no more than a guess at the mean and
        deviation of floats: those of a few samples."""
        found = replace(MEDIA[self.medium].space(self.stored), layout=self.layout, rate=self.rate)
        if found.levels is not None:
            return found
        mean, std = moments(found, self.stored, np.arange(min(len(self), FEW)), self.names)
        spread = np.where(std > 0, std, 1.0)
        return replace(found, mean=tuple(mean.tolist()), std=tuple(spread.tolist()))

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
        """SHA-256 of what is told of what, independent of names and order; empty without rows."""
        if self.rows is None:
            return ""
        codes = np.ascontiguousarray(self.rows, "<f4").view(np.uint8)
        return _fingerprint(np.concatenate([self.digests, codes], 1))

    @cached_property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """bool (N,): the samples that are never trained on, by `held_out_rule`."""
        return held_out(self.digests)


def held_out(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """bool (N,): which samples of these digests, (N, 16), are never trained on."""
    if len(digests) < HELD_OUT_MINIMUM:
        return np.zeros(len(digests), dtype=np.bool_)
    numbers = (int.from_bytes(row.tobytes(), "big") for row in digests)
    chosen = np.fromiter((n % HELD_OUT_OF == 0 for n in numbers), np.bool_, len(digests))
    # Copies of one sample are all held out, or none: something must be left to train on.
    return np.zeros_like(chosen) if chosen.all() else chosen


def _fingerprint(digests: npt.NDArray[np.uint8], kind: bytes = b"") -> str:
    rows = sorted(row.tobytes() for row in digests)
    return sha256(kind + b"%d\n" % len(rows) + b"".join(rows)).hexdigest()


def held_out_rule() -> dict[str, Any]:
    """The rule for the header of a model file."""
    return {
        "rule": f"xxh3-128 of the decoded pixels, modulo {HELD_OUT_OF}, is 0",
        "minimum": HELD_OUT_MINIMUM,
    }


# -- pairs ----------------------------------------------------------------------------------------

# Pairs: samples, and another array beside each, found by its name.

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Pairs:
    """What lies beside each of N samples.

    Attributes:
        samples: the N.
        given: what lies beside them, at their size, in an order of its own.
        rows: int64 (N,), the place in `given` of what belongs to each; -1 for none.
    """

    samples: Dataset
    given: Dataset
    rows: npt.NDArray[np.int64]

    @property
    def matched(self) -> npt.NDArray[np.bool_]:
        """bool (N,): the samples that have something beside them."""
        found: npt.NDArray[np.bool_] = self.rows >= 0
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what lies beside what, independent of names, order and resizing."""
        own, theirs = self.samples.digests[self.matched], self.given.digests
        both = np.concatenate([own, theirs[self.rows[self.matched]]], 1)
        return _fingerprint(both, b"pairs ")

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Array:
        """What lies beside these samples, as stored: (B, C, *size).

        Each must be `matched`.
        """
        found: Array = self.given.stored[self.rows[indices]]
        return found

    def cut(self, part: Any) -> Pairs:
        """The same pairs, of which `given.stored[part]` alone lies beside each sample."""
        return replace(self, given=replace(self.given, stored=self.given.stored[part]))

    def missing(self) -> Iterator[str]:
        """A sentence for each side that has samples without another half."""
        used = np.zeros(len(self.given), np.bool_)
        used[self.rows[self.matched]] = True
        for side, lone in ((self.samples, ~self.matched), (self.given, ~used)):
            if count := int(lone.sum()):
                names = listed([side.names[k] for k in np.flatnonzero(lone)[:NAMED]], count)
                text = f"{plural(count, 'image')} of {side.summary.source}"
                yield f"{text} without a pair, left out: {names}"


def pair(samples: Dataset, given: Dataset) -> Pairs:
    """Find what lies beside each sample: a file of the same path, or of the same but for its
    extension; below the folders that all files of a side share, if no path is the same.

    Raises:
        DataError: nothing has a pair.
    """
    sides = samples.names, given.names
    for own, theirs in (sides, [below_common(names, names) for names in sides]):
        rows = _rows(own, theirs)
        if (rows >= 0).any():
            return Pairs(samples, given, rows)
    first = ", ".join(show(side.names[0]) for side in (samples, given))
    raise DataError(
        f"no image of {samples.summary.source} has its pair in {given.summary.source}, by name: "
        f"such as {first}",
        "Give a pair the same name in both, and the same folders; the extensions may differ",
    )


def _rows(own: Sequence[str], theirs: Sequence[str]) -> npt.NDArray[np.int64]:
    """The place in `theirs` of each name of `own`, -1 for none."""
    whole = {name: k for k, name in enumerate(theirs)}
    stems = {_stem(name): k for k, name in reversed(list(enumerate(theirs)))}
    return np.array([whole.get(n, stems.get(_stem(n), -1)) for n in own], np.int64)


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    return folder + slash + (stem if dot else extension)


# -- measuring ------------------------------------------------------------------------------------

# The scale of stored samples, exactly: the mean and deviation of floats, the limits of levels.

AT_ONCE = 2**22
"""Numbers that are measured at a time."""

DEEP = 65_536
"""Levels of which few samples use all. Those of 8 bits are too few to be left out."""

NOISE = 2.0**-26
"""A deviation of less than this part of the mean is rounding, of 32-bit floats."""


def moments(
    space: Space, stored: Array, rows: npt.NDArray[np.int64], names: Sequence[str]
) -> tuple[Array, Array]:
    """The mean and deviation of each channel of some samples, transformed as their space says.

    Sums are of differences from the first sample's mean, in float64.

    Args:
        stored: all samples, (N, C, *size).
        rows: those that are measured.
        names: of all samples, for errors.

    Raises:
        DataError: numbers that the transform is not defined for.
    """
    shift = np.zeros(0)
    total, squares, count = np.zeros(space.channels), np.zeros(space.channels), 0
    for places, samples in _parts(stored, rows):
        values = _transformed(space, samples)
        wrong = ~np.isfinite(values).all(axis=(1, 2))
        if wrong.any():
            raise _refused(space, names[int(places[wrong][0])])
        if not count:
            shift = values[0].mean(1)
        apart = values - shift[:, None]
        total += apart.sum((0, 2))
        squares += np.square(apart).sum((0, 2))
        count += len(values) * values.shape[2]
    mean = total / count
    return mean + shift, np.sqrt(np.maximum(squares / count - mean**2, 0))


def measured(
    space: Space, stored: Array, rows: npt.NDArray[np.int64], names: Sequence[str]
) -> Space:
    """A space of floats with the `moments` of some samples.

    Raises:
        DataError: as `moments`, or a channel that never varies.
    """
    mean, std = moments(space, stored, rows, names)
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True), 1):
        if not spread > NOISE * abs(middle):
            raise DataError(
                f"channel {channel} of {space.channels} is {middle:.6g} everywhere: a model cannot "
                "learn it",
                "Leave it out of the files",
            )
    return replace(space, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def limited(space: Space, stored: Array) -> Space:
    """Return a space of 65,536 levels with the limits of some samples, if they use less than half
    of them, as the 12 bits of a camera do; any other space as it is.

    Args:
        stored: the samples, (N, C, *size); those that are held out count, so that none is beyond.
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


def _parts(
    stored: Array, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
    """Some rows at a time, and the samples in them."""
    each = max(1, AT_ONCE // int(np.prod(stored.shape[1:])))
    for start in range(0, len(rows), each):
        yield (places := rows[start : start + each]), stored[places]


def _transformed(space: Space, samples: Array) -> Array:
    """The numbers of samples, transformed as their space says, float64 (n, C, numbers)."""
    values = samples.reshape(len(samples), space.channels, -1).astype(np.float64)
    if space.transform is None:
        return values
    import torch

    transformed: Array = TRANSFORMS[space.transform].forward(torch.from_numpy(values)).numpy()
    return transformed


def _refused(space: Space, name: str) -> DataError:
    transform = space.transform or "none"
    takes = lookup(TRANSFORMS, transform, "--transform").takes
    hint = "Choose --transform asinh, which takes any number" if transform == "log" else ""
    return DataError(f"--transform {transform} is for {takes}, and {show(name)} has others", hint)
