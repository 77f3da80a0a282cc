"""Estimates from two sets of samples, with standard errors by what each sample adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics import Measured


@dataclass(frozen=True)
class Estimate:
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

    def less(self, other: Estimate) -> Estimate:
        """The difference of two estimates whose samples correspond."""
        return Estimate(self.value - other.value, self.a - other.a, self.b - other.b)

    def distance_error(self, other: Estimate) -> float:
        """Return the standard error of the difference of two distances, by that of their squares.

        A distance has a kink at 0, where its influence jumps: two models on opposite sides of the
        real samples look certainly different by the influences of either. The square is smooth,
        and y - x = (y^2 - x^2) / (y + x). Where one distance is far below the other the error is
        up to twice that of the larger: so much may the real samples be off before both are alike.
        """
        total = self.value + other.value
        if not total > 0:
            return 0.0
        scales = 2 * self.value / total, 2 * other.value / total
        a, b = (
            scales[0] * own - scales[1] * theirs
            for own, theirs in ((self.a, other.a), (self.b, other.b))
        )
        return Estimate(0.0, a, b).error()

    def measured(self) -> Measured:
        """The value with its error."""
        return Measured(self.value, self.error())


def averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates from the same samples."""
    return Estimate(
        float(np.mean([e.value for e in estimates])),
        np.mean([e.a for e in estimates], axis=0),
        np.mean([e.b for e in estimates], axis=0),
    )


def centred(values: Array) -> Array:
    """Numbers of samples (N, ...) less their mean."""
    apart: Array = values - values.mean(0)
    return apart
