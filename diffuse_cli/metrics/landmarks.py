"""KID of images known to be bad, to compare with: blurred real images, their mean, and noise.

Each is measured against the same real images. KID is unbiased at every n, so few of each suffice.
"""

from __future__ import annotations

import numpy as np

from diffuse_cli.metrics import Number, Parts
from diffuse_cli.metrics._landmarks import LANDMARKS
from diffuse_cli.metrics.kid import estimate, within

NEEDS = ("features", "landmarks")

LACKS = {"blurred": "shapes without detail", "mean": "no variety", "noise": "nothing learned"}

NUMBERS = tuple(
    Number(
        f"kid_of_{name}",
        f"of {words}",
        f"For comparison: {LACKS[name]}. A model should be clearly below.",
        question="likeness",
        place=1,
        part=True,
        axis="KID",
    )
    for name, words in LANDMARKS.items()
)


def compute(evaluation: Parts) -> dict[str, float]:
    """`kid_of_NAME` for each landmark, with standard errors as for `kid`."""
    if not evaluation.landmarks:
        return {}
    real = np.asarray(evaluation.real_features, np.float64)
    inner = within(real)
    found: dict[str, float] = {}
    for name, features in evaluation.landmarks.items():
        found |= estimate(real, np.asarray(features, np.float64), f"kid_of_{name}", inner)
    return found
