"""Images known to be bad, made from real ones, to measure beside generated ones."""

from __future__ import annotations

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.runtime import philox

IMAGES = 100
"""At most this many of each kind: their KID is then known to a few hundredths of itself."""

COPIES = 4
"""Of the mean image: the fewest that give a KID with a standard error."""

BLUR = 1 / 16
"""The deviation of the blur over the longer side: only shapes remain."""


def landmarks(real: Array) -> dict[str, Array]:
    """Pictures uint8 (M, C, H, W) by the names in `metrics._landmarks.LANDMARKS`, of real ones."""
    some = real[:IMAGES].astype(np.float64)
    mean = np.repeat(real.mean(0, keepdims=True), COPIES, 0)
    noise = philox(0, "landmarks").integers(0, 256, some.shape)
    made = {"blurred": blurred(some), "mean": mean, "noise": noise}
    return {name: np.rint(images).astype(np.uint8) for name, images in made.items()}


def blurred(images: Array) -> Array:
    """A Gaussian blur of (N, C, H, W); at the edges the weights inside are normalised."""
    deviation = BLUR * max(images.shape[2:])
    for axis in (2, 3):
        place = np.arange(images.shape[axis])
        weights = np.exp(-(((place[:, None] - place) / deviation) ** 2) / 2)
        weights /= weights.sum(1, keepdims=True)
        images = np.moveaxis(np.moveaxis(images, axis, -1) @ weights.T, -1, axis)
    return images
