"""Events of a run: a step, a preview, an evaluation, its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Step:
    """A finished step; every `log_every`-th has what was measured since the one before.

    Attributes:
        many: what `images_per_second` counts.
    """

    step: int
    steps: int
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    many: str = "images"


@dataclass(frozen=True)
class Previewed:
    """The held-out loss after a step, and the preview that was written."""

    step: int
    held_out_loss: float | None
    preview: Path | None


@dataclass(frozen=True)
class Validated:
    """The KID after a step by its key, its error, and the model file if it is the best so far."""

    step: int
    key: str
    kid: float
    error: float | None
    best: Path | None


@dataclass(frozen=True)
class Trained:
    """How a run ended.

    `best` has the model file with the lowest KID, its step and numbers, with --eval-every;
    `sample_line` is a command that samples, empty if there is none.
    """

    model: Path
    run: Path
    step: int
    steps: int
    loss: float | None
    held_out_loss: float | None
    parameters: int
    images: int
    processes: int
    seconds: float
    best: dict[str, Any] | None = None
    medium: str = "image"
    sample_line: str = ""


class Meter:
    """Mean loss and images per second since the last reading."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._losses: list[torch.Tensor] = []
        self._seconds, self._since = 0.0, time.monotonic()

    def add(self, loss: torch.Tensor) -> None:
        """Note a finished step."""
        self._losses.append(loss)
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now

    def pause(self) -> None:
        """Leave out the time since the last step: it was not training."""
        self._since = time.monotonic()

    def read(self) -> tuple[float, float]:
        """The mean of the finite losses and the images per second; starts again."""
        losses = torch.stack(self._losses)
        mean = float(losses[losses.isfinite()].mean())
        speed = self.batch_size * len(self._losses) / max(self._seconds, 1e-9)
        self._losses, self._seconds = [], 0.0
        return mean, speed
