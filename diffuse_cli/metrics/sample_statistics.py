"""Means and mean squares of samples by channel, some samples at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics.presentation import Measured, with_error

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
        return np.asarray(self.means.mean(0) + self.shift)

    @property
    def deviation(self) -> Array:
        """Over all numbers, (C,)."""
        variance = self.squares.mean(0) - np.square(self.means.mean(0))
        return np.asarray(np.sqrt(np.maximum(variance, 0)))

    def of_mean(self) -> Array:
        """The influence of each sample on the mean, (N, C)."""
        return center_influences(self.means)

    def of_log_deviation(self) -> Array:
        """The influence of each sample on the logarithm of the deviation, (N, C)."""
        middle = self.means.mean(0)
        own = center_influences(self.squares - 2 * middle * self.means)
        return np.asarray(own / np.maximum(2 * np.square(self.deviation), 1e-300))


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
        least = np.minimum(least, values.min((0, 2)))
        most = np.maximum(most, values.max((0, 2)))
        values -= shift[:, None]
        means[where] = values.mean(2)
        squares[where] = np.square(values, out=values).mean(2)
    return Moments(shift, means, squares, least, most)


def together(*sides: Array) -> tuple[Array, ...]:
    """Samples (N, C, *size) of several sides, grey ones repeated to the channels of others."""
    channels = max(side.shape[1] for side in sides)
    return tuple(np.broadcast_to(s, (len(s), channels, *s.shape[2:])) for s in sides)


def halves(real: Array, more: Array) -> tuple[Array, Array] | None:
    """Two disjoint, equally large sets of real rows, to measure against each other.

    The real ones against further ones, or two halves of the real ones if these are larger; None if
    they would have fewer than two rows.
    """
    a, b = real, more
    if min(len(real), len(more)) < len(real) // 2:
        a, b = real[::2], real[1::2]
    n = min(len(a), len(b))
    return (a[:n], b[:n]) if n > 1 else None


def average(values: Array) -> Measured:
    """The mean of independent values (N,) and its standard error, NaN for one value."""
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Measured(float(values.mean()), error)


def spread(samples: Array) -> Array:
    """The mean variance of samples (N, C, *size) about their own means, by channel, (C,)."""
    found = moments(samples)
    inner: Array = (found.squares - np.square(found.means)).mean(0)
    return np.where(inner > ROUNDING * np.square(found.mean), inner, 0)


# -- influence ------------------------------------------------------------------------------------

# Estimates from two sets of samples, with standard errors by what each sample adds.


@dataclass(frozen=True)
class SampledEstimate:
    """A value, and the influence of each sample at first order.

    Attributes:
        a, b: the influences, (N,) and (M,), of mean 0.
    """

    value: float
    a: Array
    b: Array

    def error(self) -> float:
        """The standard error over draws of both sets.

        The infinitesimal jackknife: samples are independent, the numbers in one are not. For equal
        distributions the influence is of second order in some distances, which a jackknife counts
        twice, so the error is rather too large.
        """
        variance = sum(np.square(x).sum() / (len(x) * max(len(x) - 1, 1)) for x in (self.a, self.b))
        return math.sqrt(float(variance))

    def less(self, other: SampledEstimate) -> SampledEstimate:
        """The difference of two estimates whose samples correspond."""
        return SampledEstimate(self.value - other.value, self.a - other.a, self.b - other.b)

    def distance_error(self, other: SampledEstimate) -> float:
        """Return the standard error of the difference of two distances, by that of their squares.

        A distance has a kink at 0, where its influence jumps: two models on opposite sides of the
        real samples look certainly different by the influences of either. The square is smooth,
        and y - x = (y^2 - x^2) / (y + x). Where one distance is far below the other the error is
        up to twice that of the larger: so much may the real samples be off before both are alike.
        """
        total = self.value + other.value
        if not total > 0:
            return 0.0
        x, y = 2 * self.value / total, 2 * other.value / total
        return SampledEstimate(0.0, x * self.a - y * other.a, x * self.b - y * other.b).error()

    def by(self, key: str) -> dict[str, float]:
        """Return the value and its error, by their keys."""
        return with_error(key, self.value, self.error())


def averaged(estimates: Sequence[SampledEstimate]) -> SampledEstimate:
    """The mean of estimates from the same samples."""
    return SampledEstimate(
        float(np.mean([e.value for e in estimates])),
        np.mean([e.a for e in estimates], axis=0),
        np.mean([e.b for e in estimates], axis=0),
    )


def center_influences(values: Array) -> Array:
    """Numbers of samples (N, ...) less their mean."""
    return np.asarray(values - values.mean(0))


# -- pairing --------------------------------------------------------------------------------------

# The standard error of a difference between two sets of images that correspond.


def share_difference_error(one: Array, other: Array) -> float:
    """That of the difference of two shares of the same images: truth values (N,) of each.

    Each of the four outcomes for an image has half an image more than was counted: that no image
    differs is not known without error either.
    """
    n, apart = len(one) + 2, np.asarray(other, np.float64) - np.asarray(one, np.float64)
    mean = float(apart.sum()) / n
    return math.sqrt(((float(np.abs(apart).sum()) + 1) / n - mean**2) / n)
