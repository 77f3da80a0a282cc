"""Moments, quantiles and Wasserstein distances of two sets of samples by channel.

See `marginals`. Samples are read in parts, and only a few numbers per sample and channel are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics import estimates
from diffuse_cli.metrics.estimates import Moments, SampledEstimate

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Marginals:
    """Distributions of the values of two sets of samples.

    Attributes:
        channels: the statistics of each channel of both sides as JSON, in the units of stored
            values.
        whole: the distance, a mean over channels, in levels or in standard deviations.
        floor: the distance between two sets of real samples, or None if there are too few.
        shifts: the shift of the mean of each channel, in the same units.
        spreads: the standard deviation of the real values of each channel, in the same units.
        variety: the standard deviation of the means of generated samples, divided by the real
            samples'. If the real means are equal up to rounding, it is None.
        samples: the real and generated samples, as stored.
    """

    channels: list[dict[str, Any]]
    whole: SampledEstimate
    floor: SampledEstimate | None
    shifts: tuple[SampledEstimate, ...]
    spreads: tuple[float, ...]
    variety: SampledEstimate | None
    samples: tuple[Array, Array]

    @property
    def farthest_channel(self) -> int:
        """The channel with the largest shift."""
        return max(range(len(self.shifts)), key=lambda k: abs(self.shifts[k].value))


def measure_marginals(real: Array, fake: Array, more: Array) -> Marginals:
    """Measure the marginals of stored samples (N, C, *size) and (M, C, *size).

    Samples are read twice, in parts. Grey samples are repeated to the channels of other samples.

    Args:
        more: further real samples, for the floor.
    """
    samples = real, fake
    real, fake, more = estimates.match_channels(real, fake, more)
    real_moments, fake_moments = estimates.moments(real), estimates.moments(fake)
    more_moments = estimates.moments(more) if len(more) else real_moments
    levels = all(s.dtype.kind in "bu" for s in (real, fake, more))
    bins = make_bins(real_moments, (fake_moments, more_moments), levels)
    wasserstein, sides = distances(real, fake, bins)
    units = _units(real_moments, bins)
    floor = None
    if (parts := estimates.split_real(real, more, len(fake))) is not None:
        floor = estimates.average_channels(_scale(distances(*parts, bins)[0], units))
    a, b = -real_moments.mean_influence(), fake_moments.mean_influence()
    mean_gaps = enumerate(fake_moments.mean - real_moments.mean)
    shifts = [SampledEstimate(float(gap), a[:, c], b[:, c]) for c, gap in mean_gaps]
    stretched = _ratios(real_moments, fake_moments)
    nothing = {"contrast": None, "contrast_standard_error": None}
    return Marginals(
        channels=[
            {
                "real": _describe_channel(real_moments, c, sides[0][c]),
                "generated": _describe_channel(fake_moments, c, sides[1][c]),
                **shifts[c].to_entries("shift"),
                **(ratio.to_entries("contrast") if (ratio := stretched[c]) else nothing),
                **wasserstein[c].to_entries("wasserstein"),
                "density": density(bins[c], sides[0][c].counts, sides[1][c].counts),
            }
            for c in range(len(bins))
        ],
        whole=estimates.average_channels(_scale(wasserstein, units)),
        floor=floor,
        shifts=tuple(_scale(shifts, units)),
        spreads=tuple((real_moments.deviation / units).tolist()),
        variety=_variety(real_moments, fake_moments, units, not levels, math.prod(real.shape[2:])),
        samples=samples,
    )


def _scale(values: Sequence[SampledEstimate], units: Array) -> list[SampledEstimate]:
    pairs = zip(values, units, strict=True)
    return [SampledEstimate(float(e.value / u), e.a / u, e.b / u) for e, u in pairs]


def _ratios(real: Moments, fake: Moments) -> list[SampledEstimate | None]:
    """Return the ratio of the standard deviations of generated and real values, by channel.

    It is None if the real values are equal.
    """
    varied = _find_varying(real)
    ratios = fake.deviation / np.where(varied, real.deviation, 1.0)
    a, b = real.log_std_influence(), fake.log_std_influence()
    return [
        SampledEstimate(float(r), -r * a[:, c], r * b[:, c]) if varied[c] else None
        for c, r in enumerate(ratios)
    ]


def _rounding(side: Moments, floats: bool, points: int) -> Array:
    """Return the variance between equal means that rounding can cause, by channel, (C,).

    For levels it is at most 1/3 divided by the number of points, because rounding to integers
    leaves 1/12. For floats it is a millionth of the variance with independent values.
    """
    variance = np.square(side.deviation)
    if not floats:
        return np.minimum(variance, 1.0) / (3 * points)
    whole = estimates.ROUNDING * (np.square(side.mean) + variance)
    return np.maximum(whole, 1e-6 * variance / points)


def _variety(
    real: Moments, fake: Moments, units: Array, floats: bool, points: int
) -> SampledEstimate | None:
    """Return the root of the ratio of the variances of samples' means, over all channels.

    If the means of real samples are equal, it is None.
    """
    totals, influences = [], []
    for side in (real, fake):
        squares = np.square(estimates.center_influences(side.means) / units).sum(1)
        totals.append(squares.sum() / (len(squares) - 1))
        influences.append(estimates.center_influences(squares))
    if not totals[0] > (_rounding(real, floats, points) / np.square(units)).sum():
        return None
    ratio = math.sqrt(totals[1] / totals[0])
    a, b = (x / (2 * max(total, 1e-300)) for x, total in zip(influences, totals, strict=True))
    return SampledEstimate(ratio, -ratio * a, ratio * b)


@dataclass(frozen=True)
class BinCounts:
    """Number of values of a side in each bin of a channel (B,), and their quantiles.

    Standard errors of quantiles (Woodruff 1952) are half of the distance between the quantiles one
    standard error of the fraction below and above.
    """

    counts: Array
    quantiles: Array
    errors: Array


def distances(
    a: Array, b: Array, bins: Sequence[Bins]
) -> tuple[list[SampledEstimate], tuple[list[BinCounts], list[BinCounts]]]:
    """Return the Wasserstein distance of two sets of samples by channel, and the counts."""
    counts = [_counts(side, bins) for side in (a, b)]
    gaps = [np.cumsum(x) / x.sum() - np.cumsum(y) / y.sum() for x, y in zip(*counts, strict=True)]
    widths = [np.append(np.diff(binning.points), 0.0) for binning in bins]
    signed = [np.sign(gap) * width for gap, width in zip(gaps, widths, strict=True)]
    # phi of a bin is the signed width of all bins from it on.
    potentials = [np.cumsum(row[::-1])[::-1] for row in signed]
    (phi_a, of_a), (phi_b, of_b) = (
        _analyze_samples(side, bins, potentials, side_counts)
        for side, side_counts in zip((a, b), counts, strict=True)
    )
    pairs = enumerate(zip(signed, gaps, strict=True))
    wasserstein = [
        SampledEstimate(float(width @ gap), phi_a[:, c], -phi_b[:, c]) for c, (width, gap) in pairs
    ]
    return wasserstein, (of_a, of_b)


def difference_error(real: Array, a: Array, b: Array) -> float:
    """Return the standard error of the difference of two distances from the same real samples.

    Generated samples with the same index correspond. |y| - |x| has kinks where a cumulative
    distribution crosses the real one. In each bin it is replaced by (y^2 - x^2) / (|x| + |y|) with
    a fixed denominator, which is smooth. See `SampledEstimate.distance_error`.

    Args:
        real, a, b: stored samples (N, C, *size), (M, C, *size) and (M, C, *size).
    """
    sides = estimates.match_channels(real, a, b)
    real_moments, *fake_moments = map(estimates.moments, sides)
    bins = make_bins(real_moments, fake_moments, all(side.dtype.kind in "bu" for side in sides))
    counts = [_counts(side, bins) for side in sides]
    potentials: list[list[Array]] = [[], [], []]
    for binning, *channel_counts in zip(bins, *counts, strict=True):
        real_cdf, *fake_cdfs = (np.cumsum(side) / side.sum() for side in channel_counts)
        cdf_gaps = [real_cdf - cdf for cdf in fake_cdfs]
        total = sum(map(np.abs, cdf_gaps))
        scale = 2 * np.append(np.diff(binning.points), 0.0) / np.where(total > 0, total, 1.0)
        x, y = (scale * gap for gap in cdf_gaps)
        for side_potentials, slopes in zip(potentials, (y - x, x, -y), strict=True):
            side_potentials.append(np.cumsum(slopes[::-1])[::-1])
    inputs = zip(sides, potentials, counts, strict=True)
    means = [_analyze_samples(side, bins, phi, side_counts)[0] for side, phi, side_counts in inputs]
    gaps = [
        SampledEstimate(0.0, means[0][:, c], means[1][:, c] + means[2][:, c])
        for c in range(len(bins))
    ]
    return estimates.average_channels(_scale(gaps, _units(real_moments, bins))).error()


def _units(real: Moments, bins: Sequence[Bins]) -> Array:
    """Return the unit of distances by channel: a level, or a standard deviation of real values."""
    return (
        np.where(_find_varying(real), real.deviation, 1.0) if bins[0].step else np.ones(len(bins))
    )


def _find_varying(side: Moments) -> Array:
    """Return a mask of the channels whose values differ by more than rounding, (C,)."""
    return np.asarray(np.square(side.deviation) > estimates.ROUNDING * np.square(side.mean))


def _counts(samples: Array, bins: Sequence[Bins]) -> list[Array]:
    """Count the values in each bin of each channel."""
    counts = [np.zeros(len(binning.points)) for binning in bins]
    for _, values in estimates.iterate_values(samples):
        for c, binning in enumerate(bins):
            counts[c] += np.bincount(binning.index(values[:, c]).ravel(), minlength=len(counts[c]))
    return counts


def _analyze_samples(
    samples: Array, bins: Sequence[Bins], potentials: Sequence[Array], counts: Sequence[Array]
) -> tuple[Array, list[BinCounts]]:
    """Return the centered mean potential of each sample, (N, C), and the quantiles of channels.

    The standard errors of quantiles follow from the fraction of each sample below them.
    """
    n, places = len(samples), [places_of(channel_counts, QUANTILES) for channel_counts in counts]
    means = np.empty((n, len(bins)))
    below = np.empty((n, len(bins), len(QUANTILES)))
    for where, values in estimates.iterate_values(samples):
        for c, binning in enumerate(bins):
            index = binning.index(values[:, c])
            means[where, c] = potentials[c][index].mean(1)
            for k, place in enumerate(places[c]):
                below[where, c, k] = np.count_nonzero(index <= place, axis=1) / index.shape[1]
    errors = estimates.center_influences(below).std(0, ddof=1) / math.sqrt(n)
    counted = []
    for c, points in enumerate(binning.points for binning in bins):
        ends = [
            points[places_of(counts[c], np.clip(np.array(QUANTILES) + sign * errors[c], 0, 1))]
            for sign in (-1, 1)
        ]
        counted.append(BinCounts(counts[c], points[places[c]], (ends[1] - ends[0]) / 2))
    return estimates.center_influences(means), counted


def _describe_channel(side: Moments, c: int, counted: BinCounts) -> dict[str, Any]:
    """Return the statistics of a channel of one side as JSON."""
    deviation, nothing = float(side.deviation[c]), np.zeros(1)
    of_deviation = deviation * side.log_std_influence()[:, c]
    mean = SampledEstimate(float(side.mean[c]), side.mean_influence()[:, c], nothing)
    return {
        **mean.to_entries("mean"),
        **SampledEstimate(deviation, of_deviation, nothing).to_entries("deviation"),
        "deviation_of_means": float(side.means[:, c].std(ddof=1)),
        "quantiles": [
            {"share": q, "value": float(value), "standard_error": float(error)}
            for q, value, error in zip(QUANTILES, counted.quantiles, counted.errors, strict=True)
        ],
    }


# Bins to count the values of a channel, and the density for the report.

BINS, NEAR = 4096, 0.01
"""Number of bins of floats, and the distance from the mean, in standard deviations, up to which
they have nearly the same width."""

DENSITY, TAIL = 64, 0.001
"""Number of columns of the density, and the fraction of values beyond each of its ends."""


@dataclass(frozen=True)
class Bins:
    """Bins of the values of a channel.

    Attributes:
        points: the values that represent the bins, ascending.
        center, scale, low, step: the parameters of the inverse hyperbolic sine, in which bins are
            equally wide. The step is 0 for levels, each of which has a bin.
    """

    points: Array
    center: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    step: float = 0.0

    def index(self, values: Array) -> Array:
        """Return the bin of each value."""
        if not self.step:
            return values.astype(np.intp)
        places = (np.arcsinh((values - self.center) / self.scale) - self.low) / self.step
        return np.clip(places, 0, len(self.points) - 1).astype(np.intp)


def make_bins(real: Moments, other_sides: Sequence[Moments], levels: bool) -> list[Bins]:
    """Return bins of each channel for all values, with widths that follow the real values."""
    minimum = np.min([side.minimum for side in (real, *other_sides)], axis=0)
    maximum = np.max([side.maximum for side in (real, *other_sides)], axis=0)
    if levels:
        points = np.arange(max(2, int(maximum.max()) + 1), dtype=np.float64)
        return [Bins(points)] * len(maximum)
    bins = []
    for c, center in enumerate(real.mean):
        scale = NEAR * (real.deviation[c] or max(maximum[c] - center, center - minimum[c])) or 1.0
        low, high = np.arcsinh((np.array([minimum[c], maximum[c]]) - center) / scale)
        step = max(float(high - low), 1e-9) / BINS
        points = center + scale * np.sinh(low + step * (np.arange(BINS) + 0.5))
        bins.append(Bins(points, float(center), float(scale), float(low), step))
    return bins


def places_of(counts: Array, shares: Sequence[float] | Array) -> Array:
    """Return the first bins up to which at least these fractions of the values lie."""
    whole = np.cumsum(counts)
    ranks = np.asarray(shares) * whole[-1]
    places: Array = np.minimum(np.searchsorted(whole, ranks - 1e-9 * whole[-1]), len(counts) - 1)
    return places


def density(bins: Bins, real: Array, fake: Array) -> dict[str, list[float]]:
    """Return the densities of both sides in `DENSITY` equal columns, without the rarest values."""
    ends = [places_of(counts, (TAIL, 1 - TAIL)) for counts in (real, fake)]
    first, last = min(int(e[0]) for e in ends), max(int(e[1]) for e in ends)
    low, high = bins.points[first], bins.points[last]
    columns = DENSITY
    if not bins.step:  # a whole number of levels per column
        width = max(1, math.ceil((high - low + 1) / DENSITY))
        columns = max(1, math.ceil((high - low + 1) / width))
        low, high = low - 0.5, low - 0.5 + width * columns
    elif not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, columns + 1)
    heights = [
        np.histogram(bins.points, edges, weights=counts)[0] / counts.sum() / np.diff(edges)
        for counts in (real, fake)
    ]
    names = ("edges", "real", "generated")
    return {n: row.tolist() for n, row in zip(names, (edges, *heights), strict=True)}
