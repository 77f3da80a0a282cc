"""The time of a run by --minutes: how much is left, and the steps that fill it.

All is arithmetic on seconds that others measured, and all of it is in a checkpoint, so that a
resumed run decides as one in one go would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import Stop
from diffuse_cli.training.optimization import Course

LOOKS, BETWEEN = 10, 100
"""The plan is looked at after each 1/LOOKS of the time, near the end when half of what was left is
over, but not more often than each 1/BETWEEN of the time. The same holds for the steps: where they
are quicker than was thought, much of the way would be over before the next look by time."""

TOLERANCE = 0.02
"""A plan stays that is expected to miss the time by less than this share of it."""

BLOCKS = 5
"""The time of a step is the median of the means of so many blocks of steps, which last as long as
from one look at the plan to the next: a pause spoils one of them, and what comes back regularly is
in each."""

FIRST = 10
"""The fewest steps of a first plan, so that it is looked at again before its last step: on a busy
machine the steps to come may be many times faster than those it was made from."""

COSTS = 3
"""What a chore costs is the median of so many times."""

MOST = 0.5
"""The share of the time that is kept free for what the last step brings with it. If that takes
longer, the run does so: better than a model of one step."""


@dataclass(frozen=True)
class Chore:
    """What a run does after every `every` steps and after its last, which takes as long as `cost`
    steps do."""

    name: str
    every: int
    cost: float

    def times(self, done: int, steps: int) -> int:
        """How often it is still to be done, just after `done` of `steps` steps."""
        return -(-steps // self.every) - max(done - 1, 0) // self.every


Chores = Callable[[int], Iterable[Chore]]
"""From the number of steps of a run to its chores, with guesses of what they cost."""


@dataclass(frozen=True)
class Budget:
    """The time that a run has, and what it knows of its speed.

    Attributes:
        minutes: all that it may take.
        step: seconds of a step, measured before the first.
        used: seconds so far.
        looked, ahead: `used`, and the steps to the end, when the plan was looked at last.
        gone: steps since then.
        length: the steps that were planned.
        blocks: the mean seconds of a step in the last blocks.
        steps, seconds: those of the block under way.
        costs: of the chores that were done, in steps, each time; the last few.
        fresh: seconds of those that were done in the block under way.
        threads: that the run computes with, if they are fewer than there are.
    """

    minutes: float
    step: float
    used: float = 0.0
    looked: float = 0.0
    ahead: int = 0
    gone: int = 0
    length: int = 0
    blocks: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    costs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fresh: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Budget:
        """The inverse of `dataclasses.asdict`, from JSON."""
        costs = {name: tuple(found) for name, found in values["costs"].items()}
        return cls(**{**values, "blocks": tuple(values["blocks"]), "costs": costs})

    @property
    def total(self) -> float:
        """All of the time in seconds."""
        return 60 * self.minutes

    @property
    def left(self) -> float:
        """Seconds that are left; negative if the time is over."""
        return self.total - self.used

    @property
    def pace(self) -> float:
        """Seconds that a step takes now."""
        return median(self.blocks) if self.blocks else self.step

    def _over(self, seconds: float, steps: int) -> bool:
        """Whether so much lies between two looks at the plan."""
        left = self.total - self.looked
        interval = max(min(self.total / LOOKS, left / 2), self.total / BETWEEN)
        return seconds >= interval or steps >= min(self.length / LOOKS, self.ahead / 2)

    # -- what goes by ------------------------------------------------------------------------------

    def stepped(self, seconds: float, settled: bool) -> Budget:
        """After another step; `settled` if nothing of it is still under way on the device."""
        steps, total = self.steps + 1, self.seconds + seconds
        blocks, costs, fresh = self.blocks, dict(self.costs), self.fresh
        if settled and self._over(BLOCKS * total, BLOCKS * steps):
            now = total / steps
            for name, took in fresh.items():
                *before, last = costs[name]
                costs[name] = (*before, min(last, took / now))
            blocks, steps, total, fresh = (*blocks, now)[-BLOCKS:], 0, 0.0, {}
        used, gone = self.used + seconds, self.gone + 1
        return dataclasses.replace(
            self, used=used, gone=gone, blocks=blocks, steps=steps, seconds=total, costs=costs,
            fresh=fresh,
        )  # fmt: skip

    def spent(self, seconds: float, chore: str | None = None) -> Budget:
        """After some time without steps: a chore, or anything else.

        What a chore costs is noted in steps, as a load makes both slower: in those just before it,
        or, if they are fewer, just after it, for a load that came with it.
        """
        costs, fresh = dict(self.costs), dict(self.fresh)
        if chore is not None:
            now = self.seconds / self.steps if self.steps else [self.step, *self.blocks][-1]
            costs[chore] = (*costs.get(chore, ()), seconds / now)[-COSTS:]
            fresh[chore] = seconds
        return dataclasses.replace(self, used=self.used + seconds, costs=costs, fresh=fresh)

    # -- what is to come ---------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether it is time to look at the plan."""
        return self._over(self.used - self.looked, self.gone)

    def needed(self, done: int, steps: int, chores: Chores) -> float:
        """Seconds from `done` steps to the end of a run of `steps`."""
        own = list(chores(steps))
        costs = [median(self.costs.get(c.name, (c.cost,))) for c in own]
        between = sum((c.times(done, steps) - 1) * x for c, x in zip(own, costs, strict=True))
        last = min(sum(costs) * self.pace, MOST * self.total)
        return (steps - done + between) * self.pace + last

    def plan(self, done: int, chores: Chores, least: int = 1) -> tuple[Budget, int]:
        """The number of steps that fills the time that is left; at least so many more."""
        fits, beyond = done + least, done + least + 1 + max(0, int(self.left / self.pace))
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            # The nearest number of steps: half a step more is near enough.
            if self.needed(done, middle, chores) <= self.left + self.pace / 2:
                fits = middle
            else:
                beyond = middle
        return self._looked(done, fits), fits

    def look(self, done: int, steps: int, chores: Chores) -> tuple[Budget, int]:
        """Look at the plan of a run of `steps` steps: the same number where it holds, or one that
        does."""
        missed = self.needed(done, steps, chores) - self.left
        if abs(missed) > TOLERANCE * self.total:
            return self.plan(done, chores)
        return self._looked(done, steps), steps

    def _looked(self, done: int, steps: int) -> Budget:
        return dataclasses.replace(self, looked=self.used, ahead=steps - done, gone=0, length=steps)


# -- deadline -------------------------------------------------------------------------------------

# The plan of a run by --minutes as it goes on, and what its processes decide together.


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
