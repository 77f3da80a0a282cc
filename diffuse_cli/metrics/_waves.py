"""The power of samples by frequency: periodograms, averaged over shells of equal wavelength.

See `spectrum`. Frequencies are in waves per point, so that 0.5 is the finest along an axis, and
shells have the width of one wave over the longest side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics.sample_statistics import numbers_of, spread, together

MOST = 64
"""Shells of unit width, at most; beyond that their widths grow by a constant factor."""


@dataclass(frozen=True)
class Shells:
    """Where the frequencies of a real Fourier transform fall.

    Attributes:
        frequencies: the mean of each shell, ascending, (S,).
        counts: of frequencies in each, but 0: together one less than the points.
        order, starts: places of the flattened transform by shell, and where each shell starts.
        weights: how many frequencies each of these places stands for: 1, or 2 with its mirror.
    """

    frequencies: Array
    counts: Array
    order: Array
    starts: Array
    weights: Array


def shells(size: tuple[int, ...]) -> Shells:
    """Those of samples of a size, of any number of dimensions; the mean, frequency 0, in none."""
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


def _edges(most: float) -> Array:
    """The lower edges of shells up to a radius, in waves over the longest side."""
    last = max(1, round(most))
    middles = np.arange(1, last + 1)
    if last > MOST:
        middles = np.unique(np.rint(np.geomspace(1, last, MOST)).astype(int))
    edges: Array = middles - 0.5
    return edges


@dataclass(frozen=True)
class Spectra:
    """The power of each sample in each shell, (N, S), real and generated.

    The mean over channels of the periodogram |X|^2 / points, less the sample's mean, over the
    variance of real samples about their means: 1 at every frequency for white noise of their
    variance. Summed with `shells.counts` it is points times the variance (Parseval's theorem).
    """

    shells: Shells
    real: Array
    fake: Array
    more: Array

    def of(self, real: Array, fake: Array, more: Array) -> Spectra:
        """Those of some samples alone, by masks."""
        return Spectra(self.shells, self.real[real], self.fake[fake], self.more[more])


def measure(real: Array, fake: Array, more: Array) -> Spectra:
    """The spectra of stored samples (N, C, *size), real, generated and further real ones."""
    real, fake, more = together(real, fake, more)
    where = shells(real.shape[2:])
    variances = spread(real)
    return Spectra(where, *(powers(side, where, variances) for side in (real, fake, more)))


def powers(samples: Array, where: Shells, variances: Array) -> Array:
    """The power of each sample in each shell, (N, S).

    Args:
        variances: what the power of each channel is divided by; channels of 0 are left out.
    """
    found = np.zeros((len(samples), len(where.counts)))
    axes, points = tuple(range(2, samples.ndim)), math.prod(samples.shape[2:])
    varied = variances > 0
    if not len(where.counts) or not varied.any():
        return found
    shares = np.where(varied, 1 / np.where(varied, variances, 1), 0) / (varied.sum() * points)
    scale = torch.from_numpy(shares)
    for rows, stored in numbers_of(samples):
        values = torch.from_numpy(stored.astype(np.float64))
        values -= values.mean(2, keepdim=True)
        waves = torch.fft.rfftn(values.reshape(-1, *samples.shape[1:]), dim=axes).flatten(2)
        own = torch.einsum("ncf,c->nf", torch.view_as_real(waves).square().sum(3), scale)
        sums = np.add.reduceat(own.numpy()[:, where.order] * where.weights, where.starts, axis=1)
        found[rows] = sums / where.counts
    return found
