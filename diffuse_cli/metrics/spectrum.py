"""Power of samples by frequency, which shows blur, noise and grids that eyes miss.

It needs no network. Generators often have too little or too much power at high frequencies (Durall
et al. 2020). Each sample's periodogram is averaged over channels, and over shells of frequencies
with the same wavelength in all directions. There is no window, so a difference between opposite
edges of a sample adds power at all frequencies, for real and generated samples alike. The distance
is the log-spectral distance (Gray & Markel 1976), the root mean square over shells of the
difference in decibels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics import Facts, Measurement, MetricInputs, MetricNumber, Remark, estimates

NEEDS = ("spectra",)

NOTABLE = 1.0
"""Difference in decibels above which power is called poor, a fifth of the power."""

_number = partial(MetricNumber, question="numbers")

NUMBERS = (
    _number(
        "spectral_distance",
        "spectral distance",
        "Root mean square difference of the power spectra of generated and real samples, in "
        "decibels.",
        "lower",
        "spectral_distance_floor",
        place=3,
        tolerance=NOTABLE,
    ),
    _number(
        "fine_detail",
        "fine detail",
        "Power of waves shorter than 4 pixels or points, compared with real samples, in decibels. "
        "It is negative for blurred samples and positive for noisy samples.",
        "reference",
        0.0,
        place=4,
        tolerance=NOTABLE,
    ),
)

BESIDE = ("spectral_distance_floor",)

FINE = 0.25
"""Lowest high frequency in waves per point."""

LEAST = 1e-10
"""Least power, relative to the average of real samples. Lower values are rounding."""

DECIBELS = 10 / math.log(10)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `spectral_distance` and its floor, and `fine_detail`, with standard errors.

    The result is empty for samples of one point, and for constant samples.
    """
    spectra = evaluation.spectra
    if not len(spectra.shells.counts) or not spectra.real.any():
        return {}
    result = log_spectral_distance(spectra.real, spectra.fake).to_entries("spectral_distance")
    if (parts := estimates.split_real(spectra.real, spectra.more, len(spectra.fake))) is not None:
        result |= log_spectral_distance(*parts).to_entries("spectral_distance_floor")
    if (band := measure_fine_detail(evaluation)) is not None:
        result |= band.to_entries("fine_detail")
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of the distance, by its square, and of fine detail."""
    spectra_a, spectra_b = a.spectra, b.spectra
    if not len(spectra_a.shells.counts) or not spectra_a.real.any():
        return {}
    before, after = (log_spectral_distance(s.real, s.fake) for s in (spectra_a, spectra_b))
    result = {"spectral_distance": after.distance_error(before)}
    bands = measure_fine_detail(a), measure_fine_detail(b)
    if bands[0] is not None and bands[1] is not None:
        result["fine_detail"] = bands[1].subtract(bands[0]).error()
    return result


def details(evaluation: MetricInputs) -> dict[str, Any]:
    """Return the power of both sides by frequency, in waves per point."""
    spectra = evaluation.spectra
    powers = estimates.list_averages({"real": spectra.real, "generated": spectra.fake})
    return {"frequencies": spectra.shells.frequencies.tolist(), **powers}


def remarks(facts: Facts) -> Iterator[Remark]:
    """Report whether fine detail is measurably too low or too high."""
    if "fine_detail" not in facts:
        return
    band, many = facts["fine_detail"], facts.words.many
    nothing = Measurement(0.0)
    waves = f"waves shorter than 4 {facts.words.points}"
    if not band.is_above(nothing) and not nothing.is_above(band):
        words = f"no measurable difference between generated and real {many} in {waves}"
        yield Remark("fine detail", "fine", words)
        return
    weak = band.value < 0
    size = Measurement(abs(band.value), band.error)
    ratio = 10 ** (band.value / 10)
    power = f"{ratio:.0%} of the power" if ratio < 2 else f"{ratio:.3g} times the power"
    how = f"low, as in blurred {many}" if weak else f"high, as in noisy {many}"
    yield Remark(
        "fine detail",
        "poor" if abs(band.value) > NOTABLE else "finding",
        f"too {how}: in {waves}, generated {many} have {power} of real {many} ({size} dB "
        f"{'less' if weak else 'more'})",
    )


def log_spectral_distance(real: Array, fake: Array) -> estimates.SampledEstimate:
    """Return the log-spectral distance of powers (N, S) and (M, S), in decibels."""
    levels = [np.maximum(side.mean(0), LEAST) for side in (real, fake)]
    gaps = DECIBELS * np.log(levels[1] / levels[0])
    value = math.sqrt(np.square(gaps).mean())
    slopes = gaps / (len(gaps) * value) if value else gaps
    pairs = zip((real, fake), levels, strict=True)
    a, b = (
        DECIBELS * (estimates.center_influences(side) / level) @ slopes for side, level in pairs
    )
    return estimates.SampledEstimate(value, -a, b)


def measure_fine_detail(evaluation: MetricInputs) -> estimates.SampledEstimate | None:
    """Return the ratio of generated to real power from `FINE` on, in decibels.

    It is None if real samples have no power there.
    """
    spectra = evaluation.spectra
    counts = np.where(spectra.shells.frequencies >= FINE, spectra.shells.counts, 0)
    real, fake = spectra.real @ counts, spectra.fake @ counts
    min_power = LEAST * max(1.0, counts.sum())
    if not counts.any() or real.mean() < min_power:
        return None
    levels = [max(float(side.mean()), min_power) for side in (real, fake)]
    pairs = zip((real, fake), levels, strict=True)
    a, b = (DECIBELS * estimates.center_influences(side) / level for side, level in pairs)
    return estimates.SampledEstimate(DECIBELS * math.log(levels[1] / levels[0]), -a, b)


# Periodograms, averaged over shells of equal wavelength. Frequencies are in waves per point, so 0.5
# is the highest along an axis. Shells have the width of one wave over the longest side.

MOST = 64
"""Most shells of unit width. Larger samples have shells whose widths grow by a constant factor."""


@dataclass(frozen=True)
class Shells:
    """Shells of the frequencies of a real Fourier transform.

    Attributes:
        frequencies: the mean frequency of each shell, ascending, (S,).
        counts: the number of frequencies in each shell, without frequency 0. Their sum is the
            number of points minus one.
        order, starts: the indices of the flattened transform by shell, and the start of each shell.
        weights: the number of frequencies for each of these indices: 1, or 2 with the mirrored
            frequency.
    """

    frequencies: Array
    counts: Array
    order: Array
    starts: Array
    weights: Array


@dataclass(frozen=True)
class Spectra:
    """Power of each sample in each shell, (N, S), for real and generated samples.

    It is the mean over channels of the periodogram |X|^2 / points of samples minus their means,
    divided by the variance of real samples about their means. So it is 1 at every frequency for
    white noise of that variance. Its sum with the weights `shells.counts` is the number of points
    times the variance (Parseval's theorem).
    """

    shells: Shells
    real: Array
    fake: Array
    more: Array

    def of(self, real: Array, fake: Array, more: Array) -> Spectra:
        """Return the spectra of some of the samples, by masks."""
        return Spectra(self.shells, self.real[real], self.fake[fake], self.more[more])


def shells(size: tuple[int, ...]) -> Shells:
    """Return the shells of samples of a size, with any number of dimensions.

    The mean, frequency 0, is in no shell.
    """
    axes = [np.fft.fftfreq(n) for n in size[:-1]] + [np.fft.rfftfreq(size[-1])]
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    weights = np.broadcast_to(np.where((axes[-1] > 0) & (axes[-1] < 0.5), 2.0, 1.0), radius.shape)
    radius, weights = radius.ravel(), weights.ravel()
    edges = _edges(float(radius.max()) * max(size)) / max(size)
    shell = np.searchsorted(edges, radius, "right")
    shell[0] = 0  # the mean
    order = np.argsort(shell, kind="stable")[1:]
    _, starts = np.unique(shell[order], return_index=True)
    weights = weights[order]
    counts = np.add.reduceat(weights, starts) if len(order) else np.zeros(0)
    middles = np.add.reduceat(weights * radius[order], starts) / counts if len(order) else counts
    return Shells(middles, counts, order, starts, weights)


def _edges(radius: float) -> Array:
    """Return the lower edges of shells up to a radius, in waves over the longest side."""
    last = max(1, round(radius))
    middles = np.arange(1, last + 1)
    if last > MOST:
        middles = np.unique(np.rint(np.geomspace(1, last, MOST)).astype(int))
    return middles - 0.5


def measure_spectra(real: Array, fake: Array, more: Array) -> Spectra:
    """Measure the spectra of stored samples (N, C, *size).

    Args:
        real, fake, more: the real, generated and further real samples.
    """
    real, fake, more = estimates.match_channels(real, fake, more)
    where = shells(real.shape[2:])
    variances = estimates.measure_inner_variance(real)
    return Spectra(where, *(powers(side, where, variances) for side in (real, fake, more)))


def powers(samples: Array, where: Shells, variances: Array) -> Array:
    """Return the power of each sample in each shell, (N, S).

    Args:
        variances: the divisor of the power of each channel. Channels with 0 are left out.
    """
    power = np.zeros((len(samples), len(where.counts)))
    axes, points = tuple(range(2, samples.ndim)), math.prod(samples.shape[2:])
    varied = variances > 0
    if not len(where.counts) or not varied.any():
        return power
    weights = np.where(varied, 1 / np.where(varied, variances, 1), 0) / (varied.sum() * points)
    scale = torch.from_numpy(weights)
    for rows, stored in estimates.iterate_values(samples):
        values = torch.from_numpy(stored.astype(np.float64))
        values -= values.mean(2, keepdim=True)
        waves = torch.fft.rfftn(values.reshape(-1, *samples.shape[1:]), dim=axes).flatten(2)
        mean = torch.einsum("ncf,c->nf", torch.view_as_real(waves).square().sum(3), scale)
        sums = np.add.reduceat(mean.numpy()[:, where.order] * where.weights, where.starts, axis=1)
        power[rows] = sums / where.counts
    return power
