"""KID of baseline images, to compare with: blurred real images, their mean, and noise.

Each is measured against the same real images. KID is unbiased at every n, so a few images suffice.
"""

from __future__ import annotations

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics import MetricInputs, MetricNumber, presentation
from diffuse_cli.metrics.kid import estimate_kid, sum_within
from diffuse_cli.system.rng import philox

NEEDS = ("features", "baseline_features")

LACKS = {"blurred": "shapes without detail", "mean": "no variety", "noise": "nothing learned"}

NUMBERS = tuple(
    MetricNumber(
        f"kid_of_{name}",
        f"of {words}",
        f"For comparison: {LACKS[name]}. The KID of a model should be clearly lower.",
        question="likeness",
        place=1,
        part=True,
        axis="KID",
    )
    for name, words in presentation.BASELINES.items()
)

IMAGES = 100
"""Most images of each kind. Their KID then has a standard error of a few percent."""

COPIES = 4
"""Copies of the mean image, the smallest number that gives a KID with a standard error."""

BLUR = 1 / 16
"""Standard deviation of the blur as a fraction of the longer side, so that only shapes remain."""


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `kid_of_NAME` for each baseline, with standard errors as for `kid`."""
    if not evaluation.baseline_features:
        return {}
    real = np.asarray(evaluation.real_features, np.float64)
    inner = sum_within(real)
    values: dict[str, float] = {}
    for name, features in evaluation.baseline_features.items():
        values |= estimate_kid(real, np.asarray(features, np.float64), f"kid_of_{name}", inner)
    return values


def make_baseline_images(real: Array) -> dict[str, Array]:
    """Make the baseline images of real images, uint8 (M, C, H, W), by the names in `BASELINES`."""
    first = real[:IMAGES].astype(np.float64)
    mean = np.repeat(real.mean(0, keepdims=True), COPIES, 0)
    noise = philox(0, "landmarks").integers(0, 256, first.shape)
    baselines = {"blurred": blur_images(first), "mean": mean, "noise": noise}
    return {name: np.rint(images).astype(np.uint8) for name, images in baselines.items()}


def blur_images(images: Array) -> Array:
    """Blur images (N, C, H, W) by a Gaussian, with normalized weights at the edges."""
    width = BLUR * max(images.shape[2:])
    for axis in (2, 3):
        place = np.arange(images.shape[axis])
        weights = np.exp(-(((place[:, None] - place) / width) ** 2) / 2)
        weights /= weights.sum(1, keepdims=True)
        images = np.moveaxis(np.moveaxis(images, axis, -1) @ weights.T, -1, axis)
    return images
