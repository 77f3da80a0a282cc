"""When a model begins to learn its images by heart, said in words.

The rule: the held-out loss is above its best by more than three standard errors, at two looks in a
row, while the training loss is below what it was at that best. Held-out losses are of the same
images with the same draws every time, so that the rise is measured image by image and its standard
error is that of paired differences: it covers which images happen to be held out, and is far
smaller than the spread of the losses themselves. One look may be an accident of optimization; two
in a row, while training goes on improving, are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ERRORS = 3.0
"""Standard errors of a rise that counts."""

LOOKS = 2
"""Looks in a row that see it."""

LEAST = 8
"""Images without which a standard error says little."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out losses image by image, and the mean training loss since the look before."""

    step: int
    losses: tuple[float, ...]
    training: float | None

    @property
    def mean(self) -> float:
        """The held-out loss."""
        return math.fsum(self.losses) / len(self.losses)


def risen(best: HeldOut, now: HeldOut) -> bool:
    """Whether held-out images say that `now` is worse, and training says that it is better."""
    if len(now.losses) < LEAST or len(best.losses) != len(now.losses):
        return False
    if best.training is None or now.training is None or now.training >= best.training:
        return False
    rise = np.subtract(now.losses, best.losses)
    error = float(rise.std(ddof=1)) / math.sqrt(len(rise))
    return float(rise.mean()) > ERRORS * error


class Overfitting:
    """Looks one after another, of which only the best and what follows from the rest is kept."""

    def __init__(self) -> None:
        self.best: HeldOut | None = None
        self.above = 0
        self.said = False

    def see(self, now: HeldOut) -> str | None:
        """The warning, at the first look that makes it due."""
        best = self.best
        if best is None or len(best.losses) != len(now.losses) or now.mean < best.mean:
            self.best, self.above = now, 0
            return None
        self.above = self.above + 1 if risen(best, now) else 0
        if self.said or self.above < LOOKS:
            return None
        self.said = True
        return (
            f"overfitting: the held-out loss was best at step {best.step:,} and has risen from "
            f"{best.mean:.4f} to {now.mean:.4f}, while the training loss fell from "
            f"{best.training:.4f} to {now.training:.4f}: the model is learning its images by heart"
        )

    def state(self) -> dict[str, Any]:
        """As plain values."""
        best = self.best
        look = best and {"step": best.step, "losses": list(best.losses), "training": best.training}
        return {"best": look, "above": self.above, "said": self.said}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` returned."""
        look: Mapping[str, Any] | None = state["best"]
        losses: Sequence[float] = look["losses"] if look else ()
        self.best = HeldOut(look["step"], tuple(losses), look["training"]) if look else None
        self.above, self.said = state["above"], state["said"]
