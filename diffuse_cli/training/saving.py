"""When a checkpoint follows a step, whether the disk has room, and what a model file says."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping

from torch import Tensor

from diffuse_cli import files, modelfile
from diffuse_cli.training.configuring import for_model_file
from diffuse_cli.training.power import KEPT_LENGTHS
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
    weights = 4 * sum(map(math.prod, plan.blueprint.shapes.values()))
    moments = 2 * weights
    model = weights * (2 if plan.config.keep_raw else 1)
    best = model if plan.config.eval_every else 0
    powers = len(KEPT_LENGTHS) * weights if plan.config.ema_lengths else 0
    snapshots = powers * ((plan.config.ema_lengths or 0) + 2)
    checkpoints = (KEPT + 1) * (2 * weights + moments + best + powers)
    taken = (run.checkpoints, run.model, run.snapshots)
    there = sum(map(files.size_of, taken))
    if best:
        there += files.size_of(run.best)
    total = checkpoints + snapshots + 2 * (model + best) + SPARE
    files.check_room(run.path, total - there, max(moments, model, powers))


def model_of(
    plan: Plan, step: int, ema: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None
) -> modelfile.Model:
    """A model file of a run, with the weights after `step` steps."""
    return modelfile.Model(
        blueprint=plan.blueprint,
        ema=ema,
        raw=raw,
        step=step,
        data=plan.data(),
        training=for_model_file(plan.config),
    )
