"""The plan of a run by --minutes as it goes on, and what its processes decide together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import Stop
from diffuse_cli.training.optimization import Course
from diffuse_cli.training.time_budget import Budget, Chores


class Laps:
    """The seconds since it was asked last, by a clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._since = clock, clock()

    def __call__(self) -> float:
        before, self._since = self._since, self.clock()
        return self._since - before


class Deadline:
    """Counts the time of a run, and plans it again. Of a run without a budget it does nothing.

    Attributes:
        budget: what the run has left, and knows of its speed.
    """

    def __init__(self, budget: Budget | None, laps: Laps) -> None:
        self.budget, self._laps = budget, laps

    def stepped(self, settled: bool) -> None:
        """Count a step; `settled` if nothing of it is still under way on the device."""
        seconds = self._laps()
        if self.budget:
            self.budget = self.budget.stepped(seconds, settled)

    def spend(self, chore: str | None = None) -> None:
        """Count the time since it was counted last: that of a chore, or of anything else."""
        seconds = self._laps()
        if self.budget:
            self.budget = self.budget.spent(seconds, chore)

    def planned(self, course: Course, done: int, chores: Chores) -> int:
        """Another number of steps, if the time asks for it after `done` of them; else 0."""
        if not (self.budget and self.budget.due and done < course.steps):
            return 0
        self.budget, steps = self.budget.look(done, course.steps, chores)
        return 0 if steps == course.steps else steps


def agreed(accelerator: Accelerator, stop: Stop, steps: int = 0) -> tuple[DiffuseError | None, int]:
    """The error to stop with, and the number of steps that the first process planned.

    They are the same on every process: all stop after the same step, and go on to the same one.

    Args:
        steps: a new number of steps on the first process, or 0, as on all others.
    """
    error = stop()
    if accelerator.num_processes == 1:
        return error, steps
    asked = torch.tensor([error is not None, steps], device=accelerator.device)
    stopping, steps = accelerator.reduce(asked, "sum").tolist()
    if not stopping:
        return None, steps
    errors: list[DiffuseError | None] = gather_object([error])
    return next(e for e in errors if e is not None), steps
