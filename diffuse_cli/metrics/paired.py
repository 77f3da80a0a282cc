"""How images fit what they are drawn from: likeness to the real ones, consistency, variety.

Two things stand beside a model: what is given itself, and the nearest training image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.presentation import MetricNumber, with_error
from diffuse_cli.metrics.sample_statistics import average

NEEDS = ("answers",)

_NEAREST = "of the nearest training image"

NUMBERS = tuple(
    MetricNumber(key, label, says, direction, ideal, "answers", place, part=label == _NEAREST)
    for place, (key, label, says, direction, ideal) in enumerate((
        ("psnr", "PSNR",
         "Of a generated image against the real one, in decibels: by their mean squared error. The "
         "reference is what is given itself, blown up or filled in without a model. An average of "
         "all that is plausible has the best PSNR, and looks blurred.",
         "higher", "psnr_of_given"),
        ("psnr_of_nearest", _NEAREST,
         "Of the training image that is given the most similar: looked up, not drawn.", "", None),
        ("ssim", "SSIM", "The same by structure (Wang et al. 2004), at most 1.",
         "higher", "ssim_of_given"),
        ("ssim_of_nearest", _NEAREST, "That image by structure.", "", None),
        ("feature_distance", "distance in features",
         "The root mean squared difference of a generated image and the real one in features, "
         "which blur costs more than in decibels. The reference is what is given itself.",
         "lower", "feature_distance_of_given"),
        ("feature_distance_of_nearest", _NEAREST, "That image in features.", "", None),
        ("inconsistency", "inconsistency",
         "How far a generated image, degraded in the same way, is from what it was given: the mean "
         "difference, where the range is 2. The reference is the real image, off by noise alone.",
         "reference", "inconsistency_of_real"),
        ("diversity", "diversity",
         "How far two images of the same input are apart: the root of their mean squared "
         "difference, where the range is 2. As far as one of them from the real image is right.",
         "reference", "distance_to_real"),
    ))
)  # fmt: skip
BESIDE = (
    "psnr_of_given", "ssim_of_given", "feature_distance_of_given", "inconsistency_of_real",
    "distance_to_real",
)  # fmt: skip


def likeness(
    truth: Array, first: Array, second: Array, others: Mapping[str, Array], span: float
) -> dict[str, Array]:
    """The numbers of stored samples alone: the real images, two drawn of what each is given, and
    what else could stand for it, by name; (M, C, *size) each.

    Args:
        span: of the stored numbers.
    """

    def apart(one: Array, other: Array) -> Array:
        return distance(one, other) * (2 / span)

    values = {
        "psnr": (psnr(first, truth, span) + psnr(second, truth, span)) / 2,
        "ssim": (ssim(first, truth, span) + ssim(second, truth, span)) / 2,
        "diversity": apart(first, second),
        "distance_to_real": (apart(first, truth) + apart(second, truth)) / 2,
    }
    for name, other in others.items():
        values[f"psnr_of_{name}"] = psnr(other, truth, span)
        values[f"ssim_of_{name}"] = ssim(other, truth, span)
    return values


def feature_distances(truth: Array, drawn: Array, others: Mapping[str, Array]) -> dict[str, Array]:
    """The same of features, (M, d) each."""
    apart = {f"feature_distance_of_{name}": distance(of, truth) for name, of in others.items()}
    return {"feature_distance": distance(drawn, truth), **apart}


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """The mean of each number over the real images, with its standard error."""
    found: dict[str, float] = {}
    for key, values in evaluation.answers.values.items():
        if len(values):
            found |= with_error(key, *average(values))
    return found


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """By the differences of each real image, where both have its number."""
    one, other = a.answers.values, b.answers.values
    return {
        key: average(other[key] - values)[1]
        for key, values in one.items()
        if key in other and len(values) == len(other[key])
    }


# -- similarity -----------------------------------------------------------------------------------

# Likeness of two samples that should be the same: by their error, and by their structure.

WINDOW, SPREAD = 11, 1.5
"""The side and standard deviation of the window of SSIM."""

K1, K2 = 0.01, 0.03
"""Its constants, as shares of the range."""

MOST = 100.0
"""The PSNR of equal samples, in decibels."""


def mean_square(one: Array, other: Array) -> Array:
    """The mean squared difference of samples (N, ...), each from its own other: (N,)."""
    return np.asarray(np.square(one.astype(np.float64) - other).reshape(len(one), -1).mean(1))


def distance(one: Array, other: Array) -> Array:
    """The root of `mean_square`."""
    return np.asarray(np.sqrt(mean_square(one, other)))


def psnr(one: Array, other: Array, span: float) -> Array:
    """The peak signal-to-noise ratio of samples (N, C, *size) in decibels, at most `MOST`: (N,).

    Args:
        span: of the numbers, from the smallest to the largest.
    """
    least = span**2 * 10 ** (-MOST / 10)
    return np.asarray(10 * np.log10(span**2 / np.maximum(mean_square(one, other), least)))


def ssim(one: Array, other: Array, span: float) -> Array:
    """Structural similarity of samples (N, C, *size), the mean over places and channels: (N,).

    Wang et al. 2004, eq. 13, with its Gaussian window, cut to the shortest side and only where it
    lies inside.
    """
    x, y = one.astype(np.float64), other.astype(np.float64)
    weights = _window(min(WINDOW, *x.shape[2:]))
    mean_x, mean_y = _blurred(x, weights), _blurred(y, weights)
    var_x = _blurred(x * x, weights) - mean_x**2
    var_y = _blurred(y * y, weights) - mean_y**2
    both = _blurred(x * y, weights) - mean_x * mean_y
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    found = found / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return np.asarray(found.reshape(len(x), -1).mean(1))


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
