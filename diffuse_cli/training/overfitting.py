"""A warning when a model begins to learn its images by heart.

The rule: the held-out loss is above its best by more than three standard errors, twice in a row,
while the training loss is below its value at that best. Held-out losses are of the same images with
the same draws every time, so the standard error is that of paired differences: it covers which
images happen to be held out, and is far smaller than the spread of the losses. One rise may be an
accident of optimization; two in a row while training improves are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffuse_cli.metrics import Measured

ERRORS = 3.0
"""Standard errors of a rise that counts."""

ROW = 2
"""Rises in a row that make a warning."""

LEAST = 8
"""Fewest images for a standard error worth using."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out loss of each image, and the mean training loss since the measurement before."""

    step: int
    losses: tuple[float, ...]
    training: float | None

    @property
    def mean(self) -> float:
        """The held-out loss."""
        return math.fsum(self.losses) / len(self.losses)


def risen(best: HeldOut, now: HeldOut) -> bool:
    """Whether `now` is worse on held-out images and better on training images."""
    if len(now.losses) < LEAST or len(best.losses) != len(now.losses):
        return False
    if best.training is None or now.training is None or now.training >= best.training:
        return False
    rise = np.subtract(now.losses, best.losses)
    error = float(rise.std(ddof=1)) / math.sqrt(len(rise))
    return float(rise.mean()) > ERRORS * error


class Overfitting:
    """Watches held-out losses for a rise."""

    def __init__(self) -> None:
        self.best: HeldOut | None = None
        self.above = 0
        self.said = False

    def see(self, now: HeldOut) -> str | None:
        """The warning, the first time it is due."""
        best = self.best
        if best is None or len(best.losses) != len(now.losses) or now.mean < best.mean:
            self.best, self.above = now, 0
            return None
        self.above = self.above + 1 if risen(best, now) else 0
        if self.said or self.above < ROW:
            return None
        self.said = True
        assert best.training is not None
        assert now.training is not None
        return (
            f"overfitting: the held-out loss was best at step {best.step:,} and has risen from "
            f"{Measured(best.mean)} to {Measured(now.mean)}, while the training loss fell from "
            f"{Measured(best.training)} to {Measured(now.training)}: the model is learning its "
            "training data by heart"
        )

    def state(self) -> dict[str, Any]:
        """As plain values."""
        best = asdict(self.best) if self.best else None
        return {"best": best, "above": self.above, "said": self.said}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` returned."""
        best = state["best"]
        self.best = HeldOut(**{**best, "losses": tuple(best["losses"])}) if best else None
        self.above, self.said = state["above"], state["said"]
