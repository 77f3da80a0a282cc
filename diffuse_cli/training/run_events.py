"""Events of a training run: a step, a preview, an evaluation, the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffuse_cli.metrics.memorization import Signs
from diffuse_cli.training.time_budget import Laps


@dataclass(frozen=True)
class Started:
    """Start of the steps of a run, or of the steps after it was resumed.

    Attributes:
        data: sentences on the training samples, and on skipped files.
        network: a sentence on the network and its training.
        sheet: some training samples in a grid, as a PNG file.
        lines: commands to resume, to sample and to evaluate, by their purpose.
        page: the page of the run, which a browser can show.
    """

    step: int
    steps: int
    data: tuple[str, ...]
    network: str
    sheet: bytes
    lines: Mapping[str, str]
    page: Path


@dataclass(frozen=True)
class Step:
    """Finished step. Every `log_every`-th step has the measurements since the one before.

    Attributes:
        many: the plural of the medium that `images_per_second` counts.
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
    """Held-out loss after a step, and the path of the preview."""

    step: int
    held_out_loss: float | None
    preview: Path | None


@dataclass(frozen=True)
class Compared:
    """Signs of copies after a step, and the smallest fraction of copies that would be noticed."""

    step: int
    signs: Signs
    noticed: float | None


@dataclass(frozen=True)
class Validated:
    """KID after a step, its standard error, and the model file if it is the best so far."""

    step: int
    key: str
    kid: float
    error: float | None
    best: Path | None


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes:
        best: the model file with the lowest KID, its step and metrics, with --eval-every.
        advice: a sentence with the next command, or empty.
        kept: the step of the weights in the model file, if it is not the last.
        copies_from: the step from which on samples were copies, in a run of few images.
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
    advice: str = ""
    kept: int | None = None
    copies_from: int | None = None


class Meter:
    """Mean loss and images per second since the last reading."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._losses: list[torch.Tensor] = []
        self._seconds, self._laps = 0.0, Laps(time.monotonic)

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a finished step."""
        self._losses.append(loss)
        self._seconds += self._laps()

    def pause(self) -> None:
        """Skip the time since the last step, which was not training."""
        self._laps()

    def read(self) -> tuple[float, float]:
        """Return the mean of the finite losses and the images per second, and start again."""
        losses = torch.stack(self._losses)
        mean = float(losses[losses.isfinite()].mean())
        speed = self.batch_size * len(self._losses) / max(self._seconds, 1e-9)
        self._losses, self._seconds = [], 0.0
        return mean, speed
