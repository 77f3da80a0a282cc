"""Means and mean squares of samples by channel, and estimates with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics.presentation import Measurement

if TYPE_CHECKING:
    from diffuse_cli.metrics import MetricInputs

AT_ONCE = 2**18
"""Most values in memory as float64 at a time, which fit in a CPU's cache."""


ROUNDING = 1e-13
"""Ratio of variance to squared mean below which the variance is rounding of 32-bit floats."""


@dataclass(frozen=True)
class Moments:
    """Means and mean squares of samples by channel.

    Attributes:
        shift: the number that was subtracted before squaring, (C,).
        means, squares: the mean and mean square of each sample minus `shift`, (N, C).
        minimum, maximum: the smallest and largest value, (C,).
    """

    shift: Array
    means: Array
    squares: Array
    minimum: Array
    maximum: Array

    @property
    def mean(self) -> Array:
        """The mean of all values, (C,)."""
        return np.asarray(self.means.mean(0) + self.shift)

    @property
    def deviation(self) -> Array:
        """The standard deviation of all values, (C,)."""
        variance = self.squares.mean(0) - np.square(self.means.mean(0))
        return np.asarray(np.sqrt(np.maximum(variance, 0)))

    def mean_influence(self) -> Array:
        """Return the influence of each sample on the mean, (N, C)."""
        return center_influences(self.means)

    def log_std_influence(self) -> Array:
        """Return the influence of each sample on the log of the standard deviation, (N, C)."""
        middle = self.means.mean(0)
        influences = center_influences(self.squares - 2 * middle * self.means)
        return np.asarray(influences / np.maximum(2 * np.square(self.deviation), 1e-300))


def iterate_values(samples: Array) -> Iterator[tuple[slice, Array]]:
    """Yield slices of the samples and their values (n, C, values), with floats as float64."""
    step = max(1, AT_ONCE // max(1, math.prod(samples.shape[1:])))
    for start in range(0, len(samples), step):
        part = samples[start : start + step]
        values = part.reshape(len(part), part.shape[1], -1)
        if values.dtype.kind not in "bu":
            values = values.astype(np.float64)
        yield slice(start, start + len(part)), values


def moments(samples: Array) -> Moments:
    """Compute the moments of samples (N, C, *size), shifted by the mean of the first sample."""
    n, channels = samples.shape[:2]
    shift, means, squares = np.zeros(channels), np.empty((n, channels)), np.empty((n, channels))
    minimum, maximum = np.full(channels, np.inf), np.full(channels, -np.inf)
    for where, stored in iterate_values(samples):
        values = stored.astype(np.float64)
        if not where.start:
            shift = values[0].mean(1)
        minimum = np.minimum(minimum, values.min((0, 2)))
        maximum = np.maximum(maximum, values.max((0, 2)))
        values -= shift[:, None]
        means[where] = values.mean(2)
        squares[where] = np.square(values, out=values).mean(2)
    return Moments(shift, means, squares, minimum, maximum)


def match_channels(*sides: Array) -> tuple[Array, ...]:
    """Broadcast the samples (N, C, *size) of several sides to the largest number of channels."""
    channels = max(side.shape[1] for side in sides)
    return tuple(np.broadcast_to(s, (len(s), channels, *s.shape[2:])) for s in sides)


def split_real(real: Array, more: Array, generated: int) -> tuple[Array, Array] | None:
    """Return two disjoint sets of real rows, to compare as real rows with `generated` other rows.

    They are the real rows and `generated` further rows, or parts of the real rows if these are
    larger.
    If one would have fewer than two rows, the result is None.
    """
    part = min(generated, len(real) // 2)
    a, b = real, more[:generated]
    if len(b) < part:
        a, b = real[: len(real) - part], real[len(real) - part :]
    return (a, b) if min(len(a), len(b)) > 1 else None


def read_features(evaluation: MetricInputs) -> tuple[Array, Array]:
    """Return real and generated features in float64."""
    real, fake = evaluation.real_features, evaluation.fake_features
    return real.astype("float64"), fake.astype("float64")


def split_real_features(evaluation: MetricInputs) -> tuple[Array, Array] | None:
    """Return the `split_real` of real features, in float64."""
    generated = len(evaluation.fake_features)
    halves = split_real(evaluation.real_features, evaluation.more_features, generated)
    return None if halves is None else (halves[0].astype("float64"), halves[1].astype("float64"))


def average(values: Array) -> Measurement:
    """Return the mean of independent values (N,) and its standard error, NaN for one value."""
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Measurement(float(values.mean()), error)


def average_all(values: Mapping[str, Array]) -> dict[str, float]:
    """Return the means of independent values (N,) by key, with standard errors."""
    entries = (average(rows).to_entries(key) for key, rows in values.items())
    return {name: value for entry in entries for name, value in entry.items()}


def standard_errors(values: Array) -> Array:
    """Return the standard errors of the means of values (N, ...), 0 for one value."""
    count = len(values)
    return np.asarray(values.std(0, ddof=min(1, count - 1)) / math.sqrt(count))


def list_averages(values: Mapping[str, Array]) -> dict[str, list[float]]:
    """Return the means of values (N, K) by key, then their standard errors."""
    errors = {f"{key}_standard_error": standard_errors(rows) for key, rows in values.items()}
    means = {key: rows.mean(0) for key, rows in values.items()}
    return {key: row.tolist() for key, row in {**means, **errors}.items()}


def measure_inner_variance(samples: Array) -> Array:
    """Return the mean variance of samples (N, C, *size) about their own means, by channel, (C,)."""
    sample_moments = moments(samples)
    inner: Array = (sample_moments.squares - np.square(sample_moments.means)).mean(0)
    return np.where(inner > ROUNDING * np.square(sample_moments.mean), inner, 0)


# Estimates from two sets of samples, with standard errors from the influence of each sample.


@dataclass(frozen=True)
class SampledEstimate:
    """Value with the first-order influence of each sample.

    Attributes:
        value: the estimate.
        a, b: the influences of the samples of both sides, (N,) and (M,), with mean 0.
    """

    value: float
    a: Array
    b: Array

    def error(self) -> float:
        """Return the standard error for random samples in both sets.

        It is the infinitesimal jackknife: samples are independent, but not the values in a sample.
        For equal distributions the influence on some distances is of second order. A jackknife
        counts it twice, so the standard error is a little too large there.
        """
        variance = sum(np.square(x).sum() / (len(x) * max(len(x) - 1, 1)) for x in (self.a, self.b))
        return math.sqrt(float(variance))

    def subtract(self, base: SampledEstimate) -> SampledEstimate:
        """Return the difference of two estimates whose samples correspond."""
        return SampledEstimate(self.value - base.value, self.a - base.a, self.b - base.b)

    def distance_error(self, base: SampledEstimate) -> float:
        """Return the standard error of the difference of two distances, by way of their squares.

        A distance has a kink at 0, where its influence jumps. By its influences, two models on
        opposite sides of the real samples would look certainly different. The square is smooth,
        and y - x = (y^2 - x^2) / (y + x). If one distance is far below the other, the result is up
        to twice the larger one's standard error. An error of the real samples of that size could
        make both distances equal.
        """
        total = self.value + base.value
        if not total > 0:
            return 0.0
        x, y = 2 * self.value / total, 2 * base.value / total
        return SampledEstimate(0.0, x * self.a - y * base.a, x * self.b - y * base.b).error()

    def to_entries(self, key: str) -> dict[str, float]:
        """Return the value and its standard error by their keys."""
        return Measurement(self.value, self.error()).to_entries(key)


def average_channels(channels: Sequence[SampledEstimate]) -> SampledEstimate:
    """Return the mean of estimates of several channels, from the same samples."""
    return SampledEstimate(
        float(np.mean([e.value for e in channels])),
        np.mean([e.a for e in channels], axis=0),
        np.mean([e.b for e in channels], axis=0),
    )


def center_influences(values: Array) -> Array:
    """Subtract the mean over samples from values (N, ...)."""
    return np.asarray(values - values.mean(0))


def fraction_variance(rate: float, n: int) -> float:
    """Return the binomial variance of a fraction of n images.

    An image is added to each side, so that fractions of 0 and 1 have a variance, too.
    """
    adjusted = (rate * n + 1) / (n + 2)
    return adjusted * (1 - adjusted) / n


# The standard error of a difference between two sets of corresponding images.


def fraction_difference_error(a: Array, b: Array) -> float:
    """Return the standard error of the difference of two fractions of the same images.

    Half an image is added to each of the four outcomes of an image, so that the standard error is
    not 0 if no image differs.

    Args:
        a, b: boolean arrays (N,).
    """
    n, differences = len(a) + 2, np.asarray(b, np.float64) - np.asarray(a, np.float64)
    mean = float(differences.sum()) / n
    return math.sqrt(((float(np.abs(differences).sum()) + 1) / n - mean**2) / n)


# The chance that one number is below another, and its standard error.


def rank_components(samples: Array, references: Array) -> tuple[Array, Array]:
    """Return the rank statistic of each sample and of each reference, with ties halved.

    For a sample it is the fraction of references that are farther, (N,). For a reference it is the
    fraction of samples that are closer, (M,). The mean of each is the probability that a sample is
    closer than a reference.
    """
    return 1 - _fraction_below(references, samples), _fraction_below(samples, references)


def rank_error(of_samples: Array, of_references: Array) -> float:
    """Return the standard error of the rank (DeLong et al. 1988).

    It is at least the error from one more image on the wrong side.
    """
    n, m = len(of_samples), len(of_references)
    variance = of_samples.var(ddof=1) / n + of_references.var(ddof=1) / m
    return math.sqrt(max(float(variance), 1 / (min(n, m) + 2) ** 2))


def _fraction_below(values: Array, limits: Array) -> Array:
    """Return the fraction of values below each limit, where equal values count half."""
    ordered = np.sort(values)
    sides = [np.searchsorted(ordered, limits, side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2 * len(values)))
