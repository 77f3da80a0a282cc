"""Time budget of --minutes: the time left, and the number of steps that fills it.

The number of steps is decided after the first steps and twice near the end. The module only does
arithmetic on seconds measured elsewhere. Checkpoints contain the whole state, so a resumed run
makes the same decisions as an uninterrupted run.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MEASURED_STEPS, MEASURED_SECONDS, MEASURED_SHARE, LATEST = 5, 10.0, 0.02, 0.1
"""The first decision follows MEASURED_STEPS steps that take MEASURED_SECONDS or MEASURED_SHARE of
the time, but no more than LATEST of the run. The first step of all does not count: it chooses
kernels or compiles."""

REVIEWS = (0.8, 0.95)
"""The parts of the time, or of the steps, after which the number of steps is decided again. After
the first, the learning rate still has a fifth of the run to fall to 0. The second is for load that
comes or goes in between."""

END = 0.9
"""The part of the time from which on a run ends early if only its last chores still fit."""

RECENT = 0.07
"""The part of the time, or of the steps, after which a step weighs 1/e in the current pace."""

TOLERANCE = 0.02
"""A plan stays if it is expected to miss the time by less than this fraction."""

FIRST = 40
"""The fewest steps of a predicted plan, so that the first decision comes in its first tenth."""

ENOUGH = {16: 1536, 32: 1536, 64: 3072}
"""The fewest steps of a run for each batch size. A batch of 32 images takes little more than half
the time of 64, so halving it gains steps. A batch of 16 gains none (benchmarks/README.md)."""

SMALLEST = 8
"""The smallest batch."""

RESERVE = 0.5
"""The largest fraction of the time to reserve for the chores after the last step. If they take
longer, the run does too, because a model with one step would be worse."""


@dataclass(frozen=True)
class Chore:
    """Work every `every` steps and after the last step, which takes as long as `cost` steps.

    Attributes:
        at_stop: also where --stop-at ends the run. If not, it is only done where an uninterrupted
            run does it.
    """

    name: str
    every: int
    cost: float
    at_stop: bool = False

    def times(self, done: int, steps: int) -> int:
        """Count how often the chore is still to be done, just after `done` of `steps` steps."""
        return -(-steps // self.every) - max(done - 1, 0) // self.every

    def is_due(self, done: int, steps: int, end: int) -> bool:
        """Whether to do the chore after `done` of `steps` steps, in a run that stops at `end`."""
        return done % self.every == 0 or done == (end if self.at_stop else steps)


Chores = Callable[[int], Iterable[Chore]]
"""Function from the number of steps of a run to its chores with estimated costs."""


@dataclass
class Budget:
    """Time of a run and its measured speed, as plain values for a checkpoint.

    Attributes:
        minutes: the total time of the run in minutes.
        pace: the seconds of a step, predicted before the first step.
        used: the seconds so far.
        decisions: how often the number of steps was decided from measured steps.
        taken_steps: the steps so far.
        seconds, steps: the seconds of the recent steps, without chores, and their number, each step
            with its weight.
        costs: the last cost of each chore, in steps.
        extended_at: the part of the run at which its total time was changed.
    """

    minutes: float
    pace: float
    used: float = 0.0
    decisions: int = 0
    taken_steps: int = 0
    seconds: float = 0.0
    steps: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    extended_at: float = 0.0

    @property
    def total(self) -> float:
        """Total time in seconds."""
        return 60 * self.minutes

    @property
    def seconds_left(self) -> float:
        """Remaining seconds, negative after the end."""
        return self.total - self.used

    def count_step(self, seconds: float, steps: int) -> None:
        """Count another step of a run that is planned to have `steps` steps."""
        self.used, self.taken_steps = self.used + seconds, self.taken_steps + 1
        if self.taken_steps == 1:
            self.pace = seconds
            return
        weight = math.exp(-max(seconds / self.total, 1 / steps) / RECENT)
        self.seconds = weight * self.seconds + seconds
        self.steps = weight * self.steps + 1
        self.pace = self.seconds / self.steps

    def count(self, seconds: float, chore: str | None = None) -> None:
        """Count time without steps, for a chore or other work.

        The cost of a chore is kept in steps, because other load slows down both.
        """
        self.used += seconds
        if chore is not None:
            self.costs[chore] = seconds / self.pace

    def extend(self, minutes: float, step: int, chores: Chores) -> int:
        """Change the total time after `step` steps, and return the number of steps of the run.

        It is decided again from the next steps, because they may be slower or faster.
        """
        self.minutes, self.decisions, self.taken_steps = minutes, 0, 0
        self.seconds = self.steps = 0.0
        steps = self.fill(step, chores)
        self.extended_at = self._part(step, steps)
        return steps

    def _part(self, done: int, steps: int) -> float:
        return max(self.used / self.total, done / steps)

    def estimate_seconds(self, done: int, steps: int, chores: Chores) -> float:
        """Estimate the seconds from `done` steps to the end of a run of `steps`."""
        costs = {chore: self.costs.get(chore.name, chore.cost) for chore in chores(steps)}
        between = sum((chore.times(done, steps) - 1) * cost for chore, cost in costs.items())
        final = min(sum(costs.values()) * self.pace, RESERVE * self.total)
        return (steps - done + between) * self.pace + final

    def fill(self, done: int, chores: Chores, min_steps: int = 1) -> int:
        """Return the number of steps that fills the time left, at least `min_steps` more."""
        steps = done + min_steps
        longer = range(steps + 1, steps + 1 + max(0, int(self.seconds_left / self.pace)))
        # The nearest number of steps: half a step more is near enough.
        seconds = self.seconds_left + self.pace / 2
        return steps + bisect(
            longer, seconds, key=lambda length: self.estimate_seconds(done, length, chores)
        )

    def review(self, done: int, steps: int, chores: Chores) -> int:
        """Return the number of steps of a run, after `done` of `steps` steps.

        It changes after the first steps, twice near the end, and if the time is over.
        """
        part = self._part(done, steps)
        if self.decisions == 0:
            min_seconds = min(MEASURED_SECONDS, MEASURED_SHARE * self.total)
            measured = self.taken_steps > MEASURED_STEPS and self.seconds >= min_seconds
            latest = self.extended_at + LATEST * (1 - self.extended_at)
            late = part >= latest and (self.taken_steps > 1 or self.pace > self.seconds_left)
            return self._decide(done, steps, chores) if measured or late else steps
        if self.decisions <= len(REVIEWS) and part >= REVIEWS[self.decisions - 1]:
            return self._decide(done, steps, chores)
        seconds = self.pace + self.estimate_seconds(done + 1, done + 1, chores)
        over = self.used > END * self.total and seconds > self.seconds_left
        return done + 1 if over else steps

    def _decide(self, done: int, steps: int, chores: Chores) -> int:
        self.decisions += 1
        missed = self.estimate_seconds(done, steps, chores) - self.seconds_left
        return self.fill(done, chores) if abs(missed) > TOLERANCE * self.total else steps


def choose_batch_size(
    seconds: float, step_seconds: Callable[[int], float], smallest: int = SMALLEST
) -> int:
    """Return the largest batch size whose `ENOUGH` steps fit into the seconds of a run.

    A short run benefits from more steps, a long run from better steps: after ten minutes, batches
    of 32 were ahead of 64 on three data sets and level on one, at about 4,500 and 2,500 steps
    (benchmarks/README.md).

    Args:
        step_seconds: function from a batch size to the seconds of its step.
        smallest: the smallest batch size that the processes can share.
    """
    fitting = (batch for batch, steps in ENOUGH.items() if steps * step_seconds(batch) <= seconds)
    return max((smallest, *fitting))


class Laps:
    """Clock that returns the seconds since its last call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._since = clock, clock()

    def __call__(self) -> float:
        """Return the seconds since the last call."""
        before, self._since = self._since, self.clock()
        return self._since - before
