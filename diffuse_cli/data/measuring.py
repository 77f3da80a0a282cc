"""The scale of stored samples, exactly: the mean and deviation of floats, the limits of levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.space import TRANSFORMS, Space
from diffuse_cli.system.errors import DataError, lookup
from diffuse_cli.system.files import show

Array = npt.NDArray[Any]

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
    for places, values in _transformed(space, stored, rows):
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
    each = max(1, AT_ONCE // int(np.prod(stored.shape[1:])))
    ends = set[int]()
    for start in range(0, len(stored), each):
        part = stored[np.arange(start, min(start + each, len(stored)))]
        ends |= {int(part.min()), int(part.max())}
    low, high = min(ends), max(ends)
    if low == high or high - low + 1 >= DEEP // 2:
        return space
    return replace(space, limits=(low, high))


def _transformed(
    space: Space, stored: Array, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
    """Some rows at a time, and their numbers transformed, float64 (n, C, numbers)."""
    each = max(1, AT_ONCE // int(np.prod(stored.shape[1:])))
    for start in range(0, len(rows), each):
        places = rows[start : start + each]
        values = stored[places].reshape(len(places), space.channels, -1).astype(np.float64)
        if space.transform is not None:
            import torch

            forward = TRANSFORMS[space.transform].forward
            values = forward(torch.from_numpy(values)).numpy()
        yield places, values


def _refused(space: Space, name: str) -> DataError:
    transform = space.transform or "none"
    takes = lookup(TRANSFORMS, transform, "--transform").takes
    hint = "Choose --transform asinh, which takes any number" if transform == "log" else ""
    return DataError(f"--transform {transform} is for {takes}, and {show(name)} has others", hint)
