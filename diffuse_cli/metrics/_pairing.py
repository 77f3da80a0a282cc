"""The standard error of a difference between two sets of images that correspond."""

from __future__ import annotations

import math

import numpy as np

from diffuse_cli.media import Array


def share_difference_error(one: Array, other: Array) -> float:
    """That of the difference of two shares of the same images: truth values (N,) of each.

    Each of the four outcomes for an image has half an image more than was counted: that no image
    differs is not known without error either.
    """
    n, apart = len(one) + 2, np.asarray(other, np.float64) - np.asarray(one, np.float64)
    mean = float(apart.sum()) / n
    return math.sqrt(((float(np.abs(apart).sum()) + 1) / n - mean**2) / n)
