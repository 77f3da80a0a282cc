"""Paired metrics of conditional models: similarity to the real image, consistency and diversity.

They are compared with two baselines: the conditioning image, and the nearest training image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics import MetricInputs, MetricNumber
from diffuse_cli.metrics.estimates import average, average_all

NEEDS = ("paired_values",)

_NEAREST = "of the nearest training image"

TOLERANCES = {"inconsistency": 0.1, "diversity": 0.1}
"""Tolerances of values with a reference of a perfect model, for values in a range of 2."""

NUMBERS = tuple(
    MetricNumber(key, label, says, direction, ideal, "answers", place, part=label == _NEAREST,
                 tolerance=TOLERANCES.get(key))
    for place, (key, label, says, direction, ideal) in enumerate((
        ("psnr", "PSNR",
         "Peak signal-to-noise ratio of a generated image compared with the real image, in "
         "decibels. The reference is the conditioning image, resized or filled without a model. "
         "The average of all plausible images has the best PSNR, but is blurred.",
         "higher", "psnr_of_given"),
        ("psnr_of_nearest", _NEAREST,
         "For comparison: the training image with the most similar conditioning image.", "", None),
        ("ssim", "SSIM",
         "Structural similarity of a generated and the real image (Wang et al. 2004), at most 1.",
         "higher", "ssim_of_given"),
        ("ssim_of_nearest", _NEAREST, "For comparison: the same training image.", "", None),
        ("feature_distance", "feature distance",
         "Root mean squared difference of the features of a generated and the real image. Blur "
         "has a larger effect here than on PSNR. The reference is the conditioning image.",
         "lower", "feature_distance_of_given"),
        ("feature_distance_of_nearest", _NEAREST, "For comparison: the same training image.", "",
         None),
        ("inconsistency", "inconsistency",
         "Mean difference between the conditioning image and the generated image after the same "
         "degradation, for values in a range of 2. The reference is the real image, which differs "
         "only by noise.",
         "reference", "inconsistency_of_real"),
        ("diversity", "diversity",
         "Root mean squared difference of two images with the same conditioning image, for values "
         "in a range of 2. The reference is their distance from the real image.",
         "reference", "distance_to_real"),
    ))
)  # fmt: skip
BESIDE = (
    "psnr_of_given", "ssim_of_given", "feature_distance_of_given", "inconsistency_of_real",
    "distance_to_real",
)  # fmt: skip


@dataclass(frozen=True)
class PairedValues:
    """Values of paired metrics for each real image.

    Attributes:
        values: the values (M,) by key.
        rows: the indices of these images among the real images.
        first: the first samples as pictures, uint8 (K, 1 or 3, H, W), by their kind.
    """

    values: Mapping[str, Array]
    rows: Array
    first: Mapping[str, Array] = field(default_factory=dict)

    def __getitem__(self, chosen: Array) -> PairedValues:
        """Return the values of some real images, by a mask of all real images."""
        mask = chosen[self.rows]
        return PairedValues({k: value[mask] for k, value in self.values.items()}, self.rows[mask])


def compute_pixel_metrics(
    truth: Array, first: Array, second: Array, baselines: Mapping[str, Array], span: float
) -> dict[str, Array]:
    """Return the paired metrics that need only stored samples, (M, C, *size) each.

    Args:
        truth: the real images.
        first, second: two generated images for each conditioning image.
        baselines: baseline images by name.
        span: the range of stored values.
    """

    def distance(a: Array, b: Array) -> Array:
        return rms_difference(a, b) * (2 / span)

    values = {
        "psnr": (psnr(first, truth, span) + psnr(second, truth, span)) / 2,
        "ssim": (ssim(first, truth, span) + ssim(second, truth, span)) / 2,
        "diversity": distance(first, second),
        "distance_to_real": (distance(first, truth) + distance(second, truth)) / 2,
    }
    for name, baseline in baselines.items():
        values[f"psnr_of_{name}"] = psnr(baseline, truth, span)
        values[f"ssim_of_{name}"] = ssim(baseline, truth, span)
    return values


def compare_regions(
    maps: Array, names: Mapping[int, str], truth: Array, fakes: Sequence[Array]
) -> dict[str, Array]:
    """Return the mean and the standard deviation of intensity in the region of each label, (M,).

    They are NaN for images whose map lacks the label.

    Args:
        maps: the label maps (M, 1, H, W).
        names: the names of the labels.
        truth: the real images (M, C, H, W), colors only.
        fakes: two generated images for each map, of which the values are means.
    """
    values: dict[str, Array] = {}
    sides = [x.mean(1, dtype=np.float64).reshape(len(x), -1) for x in (truth, *fakes)]
    for label, name in names.items():
        region = (maps == label).reshape(len(maps), -1)
        size = region.sum(1, keepdims=True)
        with np.errstate(invalid="ignore"):  # a map that lacks the label divides 0 by 0
            means = [(x * region).sum(1, keepdims=True) / size for x in sides]
            squares = ((x - mean) ** 2 * region for x, mean in zip(sides, means, strict=True))
            spreads = [np.sqrt(part.sum(1, keepdims=True) / size) for part in squares]
        for key, (real, first, second) in (("mean", means), ("spread", spreads)):
            values[f"{key}_in_{name}"] = (first + second)[:, 0] / 2
            values[f"{key}_in_{name}_of_real"] = real[:, 0]
    return values


def feature_distances(real: Array, fake: Array, baselines: Mapping[str, Array]) -> dict[str, Array]:
    """Return the feature distances of generated images and baselines, from features (M, d)."""
    distances = {"feature_distance": rms_difference(fake, real)}
    for name, features in baselines.items():
        distances[f"feature_distance_of_{name}"] = rms_difference(features, real)
    return distances


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return the mean of each value over the real images, with its standard error."""
    # Without images that lack a label.
    values = {k: v[~np.isnan(v)] for k, v in evaluation.paired_values.values.items()}
    return average_all({key: rows for key, rows in values.items() if len(rows)})


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors from differences per real image, for values in both."""
    values_a, values_b = a.paired_values.values, b.paired_values.values
    return {
        key: average(differences)[1]
        for key, values in values_a.items()
        if key in values_b and len(values) == len(values_b[key])
        # Without images that lack a label.
        if len(differences := (values_b[key] - values)[~np.isnan(values)])
    }


# Similarity of two samples that should be the same: PSNR and SSIM.

WINDOW, SPREAD = 11, 1.5
"""The side and standard deviation of the window of SSIM."""

K1, K2 = 0.01, 0.03
"""Constants of SSIM, as fractions of the range."""

MOST = 100.0
"""PSNR of equal samples, in decibels."""


def mean_square(a: Array, b: Array) -> Array:
    """Return the mean squared difference of corresponding samples (N, ...): (N,)."""
    return np.asarray(np.square(a.astype(np.float64) - b).reshape(len(a), -1).mean(1))


def rms_difference(a: Array, b: Array) -> Array:
    """Return the root of `mean_square`."""
    return np.asarray(np.sqrt(mean_square(a, b)))


def psnr(samples: Array, truth: Array, span: float) -> Array:
    """Return the peak signal-to-noise ratio of samples (N, C, *size) in decibels, (N,).

    It is at most `MOST`.

    Args:
        span: the range of values.
    """
    min_square = span**2 * 10 ** (-MOST / 10)
    return np.asarray(10 * np.log10(span**2 / np.maximum(mean_square(samples, truth), min_square)))


def ssim(samples: Array, truth: Array, span: float) -> Array:
    """Return the structural similarity of samples (N, C, *size), (N,).

    It is the mean over positions and channels of Wang et al. 2004, eq. 13. The Gaussian window is
    cut to the shortest side, and is used only where it is inside the sample.
    """
    x, y = samples.astype(np.float64), truth.astype(np.float64)
    weights = _window(min(WINDOW, *x.shape[2:]))
    mean_x, mean_y = _filter(x, weights), _filter(y, weights)
    var_x = _filter(x * x, weights) - mean_x**2
    var_y = _filter(y * y, weights) - mean_y**2
    covariance = _filter(x * y, weights) - mean_x * mean_y
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return np.asarray(similarity.reshape(len(x), -1).mean(1))


def _window(side: int) -> Sequence[float]:
    middle = (side - 1) / 2
    weights = [math.exp(-((i - middle) ** 2) / (2 * SPREAD**2)) for i in range(side)]
    return [weight / sum(weights) for weight in weights]


def _filter(x: Array, weights: Sequence[float]) -> Array:
    """Filter x (N, C, *size) by the window along each dimension, only where it is inside."""
    for axis in range(2, x.ndim):
        length = x.shape[axis] - len(weights) + 1
        terms = [w * x.take(range(i, i + length), axis) for i, w in enumerate(weights)]
        x = sum(terms[1:], terms[0])
    return x
