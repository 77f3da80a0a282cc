"""Warning when a model starts to memorize its training images.

The rule: the mean held-out loss of the last measurements is above the lowest mean of as many
earlier ones, by more than four standard errors, while the training loss is below its value at the
best measurement. Held-out losses use the same images, timesteps and noise every time. Their error
is the larger of two: of the choice of held-out images, from paired differences, and of the jitter
of the run, from the second differences of the curve, which a trend does not change. On plateaus,
simulated with jitter of one to four paired errors, 8 to 50 measurements raise under 2 % false
alarms (tests/training/test_overfitting.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffuse_cli.metrics import Measurement

ERRORS = 4.0
"""Standard errors of a rise that counts."""

WINDOW, PARTS = 3, 4
"""Measurements that are averaged: 1/PARTS of all so far, and at least WINDOW."""

FEWEST_FOR_ERROR = 8
"""The fewest images for a useful standard error."""


@dataclass(frozen=True)
class HeldOutLosses:
    """Held-out loss of each image, and the mean training loss since the last measurement."""

    step: int
    losses: tuple[float, ...]
    training: float | None

    @property
    def mean(self) -> float:
        """Mean held-out loss."""
        return math.fsum(self.losses) / len(self.losses)

    def paired_error(self, earlier: HeldOutLosses) -> float:
        """Return the standard error of the difference of two means."""
        differences = np.subtract(self.losses, earlier.losses)
        return float(differences.std(ddof=1)) / math.sqrt(len(differences))


def has_risen(means: Sequence[float], error: float) -> bool:
    """Whether the last held-out losses of a curve are higher than its lowest.

    Args:
        means: the mean held-out losses so far.
        error: the standard error of a difference of two of them, by the choice of images.
    """
    width = max(WINDOW, len(means) // PARTS)
    if len(means) < 2 * width:
        return False
    smooth = np.convolve(means, np.full(width, 1 / width), "valid")
    # The median of |x| is 0.6745 standard deviations, and a second difference has six variances.
    jitter = float(np.median(np.abs(np.diff(means, 2)))) / 0.6745 / math.sqrt(6)
    sigma = math.sqrt(2 / width) * max(jitter, error)
    return bool(smooth[-1] - smooth[:-width].min() > ERRORS * sigma)


@dataclass
class Overfitting:
    """State of the overfitting warning.

    Attributes:
        best: the measurement with the lowest held-out loss.
        means: the mean held-out losses so far.
        said: whether the warning was shown.
    """

    best: HeldOutLosses | None = None
    means: list[float] = field(default_factory=list)
    said: bool = False

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Overfitting:
        """Restore the state from the JSON of `dataclasses.asdict`."""
        best = state["best"]
        held = HeldOutLosses(**{**best, "losses": tuple(best["losses"])}) if best else None
        return cls(held, list(state["means"]), state["said"])

    def add_measurement(self, now: HeldOutLosses) -> str | None:
        """Add a measurement, and return the warning the first time it is due."""
        best = self.best
        if best is None or len(best.losses) != len(now.losses):
            self.best, self.means = now, [now.mean]
            return None
        self.means.append(now.mean)
        if now.mean < best.mean:
            self.best = now
            return None
        if self.said or len(now.losses) < FEWEST_FOR_ERROR:
            return None
        if best.training is None or now.training is None or now.training >= best.training:
            return None
        if not has_risen(self.means, now.paired_error(best)):
            return None
        self.said = True
        return (
            f"overfitting: the held-out loss was best at step {best.step:,} and has risen from "
            f"{Measurement(best.mean)} to {Measurement(now.mean)}, while the training loss fell "
            f"from {Measurement(best.training)} to {Measurement(now.training)}. The model "
            "memorizes its training data"
        )
