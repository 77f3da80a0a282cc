"""Bins in which the numbers of a channel are counted, and the density that is shown of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics.sample_statistics import Moments

BINS, NEAR = 4096, 0.01
"""Bins of floats, and the part of a deviation up to which they have about one width."""

DENSITY, TAIL = 64, 0.001
"""Columns of the density that is shown, and the share of numbers beyond each end of it."""


@dataclass(frozen=True)
class Bins:
    """Where numbers of a channel are counted.

    Attributes:
        points: the numbers that bins stand for, ascending.
        centre, scale, low, step: of the inverse hyperbolic sine whose equal parts the bins are;
            a step of 0 for levels, which are their own bins.
    """

    points: Array
    centre: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    step: float = 0.0

    def index(self, values: Array) -> Array:
        """The bin of each number."""
        if not self.step:
            return values.astype(np.intp)
        places = (np.arcsinh((values - self.centre) / self.scale) - self.low) / self.step
        found: Array = np.clip(places, 0, len(self.points) - 1).astype(np.intp)
        return found


def binned(ours: Moments, others: Sequence[Moments], levels: bool) -> list[Bins]:
    """Bins of each channel that hold all numbers, as fine as the real ones ask for."""
    least = np.min([side.least for side in (ours, *others)], axis=0)
    most = np.max([side.most for side in (ours, *others)], axis=0)
    if levels:
        points = np.arange(max(2, int(most.max()) + 1), dtype=np.float64)
        return [Bins(points)] * len(most)
    found = []
    for c, centre in enumerate(ours.mean):
        scale = NEAR * (ours.deviation[c] or max(most[c] - centre, centre - least[c])) or 1.0
        low, high = np.arcsinh((np.array([least[c], most[c]]) - centre) / scale)
        step = max(float(high - low), 1e-9) / BINS
        points = centre + scale * np.sinh(low + step * (np.arange(BINS) + 0.5))
        found.append(Bins(points, float(centre), float(scale), float(low), step))
    return found


def places_of(counts: Array, shares: Sequence[float] | Array) -> Array:
    """The first bin up to which at least these shares of the numbers lie."""
    whole = np.cumsum(counts)
    wanted = np.asarray(shares) * whole[-1]
    found: Array = np.minimum(np.searchsorted(whole, wanted - 1e-9 * whole[-1]), len(counts) - 1)
    return found


def density(bins: Bins, real: Array, fake: Array) -> dict[str, list[float]]:
    """The share of numbers in each of `DENSITY` equal columns over the width, from all but the
    rarest numbers of both sides."""
    ends = [places_of(counts, (TAIL, 1 - TAIL)) for counts in (real, fake)]
    first, last = min(int(e[0]) for e in ends), max(int(e[1]) for e in ends)
    low, high = bins.points[first], bins.points[last]
    columns = DENSITY
    if not bins.step:  # whole levels a column
        each = max(1, math.ceil((high - low + 1) / DENSITY))
        columns = max(1, math.ceil((high - low + 1) / each))
        low, high = low - 0.5, low - 0.5 + each * columns
    elif not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, columns + 1)
    heights = [
        np.histogram(bins.points, edges, weights=counts)[0] / counts.sum() / np.diff(edges)
        for counts in (real, fake)
    ]
    names = ("edges", "real", "generated")
    return {n: own.tolist() for n, own in zip(names, (edges, *heights), strict=True)}
