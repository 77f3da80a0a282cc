"""Means and mean squares of samples by channel, some samples at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics._influence import centred

AT_ONCE = 2**18
"""Numbers in memory as float64 at a time; more would not stay in a processor's cache."""

LARGEST = float(np.finfo(np.float32).max)
"""What stands for infinity."""

ROUNDING = 1e-13
"""A variance of less than this part of the squared mean is rounding, of 32-bit floats."""


@dataclass(frozen=True)
class Moments:
    """The means and mean squares of samples about `shift`, by channel, (N, C); `shift`, `least` and
    `most` are (C,)."""

    shift: Array
    means: Array
    squares: Array
    least: Array
    most: Array

    @property
    def mean(self) -> Array:
        """Over all numbers, (C,)."""
        found: Array = self.means.mean(0) + self.shift
        return found

    @property
    def deviation(self) -> Array:
        """Over all numbers, (C,)."""
        variance = self.squares.mean(0) - np.square(self.means.mean(0))
        found: Array = np.sqrt(np.maximum(variance, 0))
        return found

    def of_mean(self) -> Array:
        """The influence of each sample on the mean, (N, C)."""
        return centred(self.means)

    def of_log_deviation(self) -> Array:
        """The influence of each sample on the logarithm of the deviation, (N, C)."""
        middle = self.means.mean(0)
        own = centred(self.squares - 2 * middle * self.means)
        found: Array = own / np.maximum(2 * np.square(self.deviation), 1e-300)
        return found


def numbers_of(samples: Array) -> Iterator[tuple[slice, Array]]:
    """Some samples at a time: which, and their numbers (n, C, numbers); floats as float64, where
    what is no number is 0."""
    each = max(1, AT_ONCE // max(1, math.prod(samples.shape[1:])))
    for start in range(0, len(samples), each):
        part = samples[start : start + each]
        values = part.reshape(len(part), part.shape[1], -1)
        if values.dtype.kind not in "bu":
            values = np.nan_to_num(values.astype(np.float64), posinf=LARGEST, neginf=-LARGEST)
        yield slice(start, start + len(part)), values


def moments(samples: Array) -> Moments:
    """Of samples (N, C, *size), about the mean of the first."""
    n, channels = samples.shape[:2]
    shift, means, squares = np.zeros(channels), np.empty((n, channels)), np.empty((n, channels))
    least, most = np.full(channels, np.inf), np.full(channels, -np.inf)
    for where, stored in numbers_of(samples):
        values = stored.astype(np.float64)
        if not where.start:
            shift = values[0].mean(1)
        least, most = (
            pick(own, side(values, axis=(0, 2)))
            for pick, own, side in ((np.minimum, least, np.min), (np.maximum, most, np.max))
        )
        values -= shift[:, None]
        means[where] = values.mean(2)
        squares[where] = np.square(values, out=values).mean(2)
    return Moments(shift, means, squares, least, most)


def together(*sides: Array) -> tuple[Array, ...]:
    """Samples (N, C, *size) of several sides, grey ones repeated to the channels of others."""
    channels = max(side.shape[1] for side in sides)
    return tuple(np.broadcast_to(s, (len(s), channels, *s.shape[2:])) for s in sides)


def spread(samples: Array) -> Array:
    """The mean variance of samples (N, C, *size) about their own means, by channel, (C,)."""
    found = moments(samples)
    inner: Array = (found.squares - np.square(found.means)).mean(0)
    return np.where(inner > ROUNDING * np.square(found.mean), inner, 0)
