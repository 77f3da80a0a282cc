"""Standard errors of means, and of differences between two sets of images that correspond."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]


def mean_error(values: Array) -> float:
    """The standard error of the mean of values (N,); NaN for one."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def share_difference_error(one: Array, other: Array) -> float:
    """That of the difference of two shares of the same images: truth values (N,) of each.

    Each of the four outcomes for an image has half an image more than was counted: that no image
    differs is not known without error either.
    """
    n, apart = len(one) + 2, np.asarray(other, np.float64) - np.asarray(one, np.float64)
    mean = float(apart.sum()) / n
    return math.sqrt(((float(np.abs(apart).sum()) + 1) / n - mean**2) / n)
