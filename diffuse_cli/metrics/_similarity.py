"""Likeness of two samples that should be the same: by their error, and by their structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffuse_cli.media import Array

WINDOW, SPREAD = 11, 1.5
"""The side and standard deviation of the window of SSIM."""

K1, K2 = 0.01, 0.03
"""Its constants, as shares of the range."""

MOST = 100.0
"""The PSNR of equal samples, in decibels."""


def psnr(one: Array, other: Array, span: float) -> Array:
    """The peak signal-to-noise ratio of samples (N, C, *size) in decibels, at most `MOST`: (N,).

    Args:
        span: of the numbers, from the smallest to the largest.
    """
    import numpy as np

    apart = one.astype(np.float64) - other
    error = np.square(apart).reshape(len(one), -1).mean(1)
    found: Array = 10 * np.log10(span**2 / np.maximum(error, span**2 * 10 ** (-MOST / 10)))
    return found


def ssim(one: Array, other: Array, span: float) -> Array:
    """Structural similarity of samples (N, C, *size), the mean over places and channels: (N,).

    Wang et al. 2004, eq. 13, with its Gaussian window, cut to the shortest side and only where it
    lies inside.
    """
    import numpy as np

    x, y = one.astype(np.float64), other.astype(np.float64)
    weights = _window(min(WINDOW, *x.shape[2:]))
    mean_x, mean_y = _blurred(x, weights), _blurred(y, weights)
    var_x = _blurred(x * x, weights) - mean_x**2
    var_y = _blurred(y * y, weights) - mean_y**2
    both = _blurred(x * y, weights) - mean_x * mean_y
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    found = found / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    means: Array = found.reshape(len(x), -1).mean(1)
    return means


def _window(side: int) -> Sequence[float]:
    middle = (side - 1) / 2
    weights = [math.exp(-((i - middle) ** 2) / (2 * SPREAD**2)) for i in range(side)]
    return [weight / sum(weights) for weight in weights]


def _blurred(x: Array, weights: Sequence[float]) -> Array:
    """x (N, C, *size) under the window, along each dimension, where it lies inside."""
    for axis in range(2, x.ndim):
        kept = x.shape[axis] - len(weights) + 1
        first, *rest = (w * x.take(range(i, i + kept), axis) for i, w in enumerate(weights))
        x = sum(rest, first)
    return x
