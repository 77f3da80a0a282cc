"""When a checkpoint follows a step, and whether the disk has room for a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from diffuse_cli import files
from diffuse_cli.core.unet import UNet
from diffuse_cli.training.preparing import Plan
from diffuse_cli.training.rundir import KEPT, RunDirectory

EVERY = 500
"""Steps between checkpoints where nothing says otherwise."""

SHARE = 100
"""Where nothing says otherwise, saving takes at most one part in so many of the time."""

SPARE = 2**23
"""Bytes for metrics, previews, headers and the losses that timesteps are drawn by."""


class Pace:
    """The steps that a checkpoint follows: every so many as `every` says. Without it every 500th,
    passed over while the last save is less than a hundred times as long ago as it took.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self._ended, self._took = time.monotonic(), 0.0

    def due(self, done: int) -> bool:
        """Whether to save after `done` steps."""
        if self.every is not None:
            return done % self.every == 0
        return done % EVERY == 0 and time.monotonic() - self._ended >= SHARE * self._took

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around a save."""
        began = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._took = self._ended - began


def check_room(plan: Plan, run: RunDirectory) -> None:
    """Refuse a run whose files cannot fit on the disk, beside what it will replace.

    Raises:
        OutputError: as said.
    """
    with torch.device("meta"):
        state = UNet(plan.unet).state_dict().values()
    weights = sum(t.numel() * t.element_size() for t in state)
    moments = 2 * weights
    model = weights * (2 if plan.config.keep_raw else 1)
    checkpoints = (KEPT + 1) * (2 * weights + moments)
    there = files.size_of(run.checkpoints) + files.size_of(run.model)
    files.check_room(run.path, checkpoints + 2 * model + SPARE - there, max(moments, model))
