"""Time budget of --minutes: the time left, and the number of steps that fills it.

The module only does arithmetic on seconds measured elsewhere. Checkpoints contain the whole state,
so a resumed run makes the same decisions as an uninterrupted run.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

LOOKS, BETWEEN = 10, 100
"""The plan is reviewed after each 1/LOOKS of the time, and near the end when half of the remaining
time has passed, but at most every 1/BETWEEN of the time. The same holds for the steps: if they are
faster than expected, much of the run would be over before a review by time."""

TOLERANCE = 0.02
"""A plan stays if it is expected to miss the time by less than this fraction."""

BLOCKS = 5
"""The time of a step is the median over BLOCKS blocks of steps, which together last as long as the
interval between two reviews. A single pause affects one block, and regular work affects all."""

FIRST = 10
"""The fewest steps of a first plan, so that it is reviewed before its last step: on a busy machine,
later steps may be many times faster than the measured steps."""

ENOUGH = {16: 1536, 32: 1536, 64: 3072}
"""The fewest steps of a run for each batch size. A batch of 32 images takes little more than half
the time of 64, so halving it gains steps. A batch of 16 gains none (benchmarks/README.md)."""

SMALLEST = 8
"""The smallest batch."""

COSTS = 3
"""The cost of a chore is the median of its last COSTS times."""

MOST = 0.5
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

    def times(self, step: int, steps: int) -> int:
        """Count how often the chore is still to be done, just after `step` of `steps` steps."""
        return -(-steps // self.every) - max(step - 1, 0) // self.every

    def is_due(self, step: int, steps: int, end: int) -> bool:
        """Whether to do the chore after `step` of `steps` steps, in a run that stops at `end`."""
        return step % self.every == 0 or step == (end if self.at_stop else steps)


Chores = Callable[[int], Iterable[Chore]]
"""Function from the number of steps of a run to its chores with estimated costs."""


@dataclass
class Budget:
    """Time of a run and its measured speed, as plain values for a checkpoint.

    Attributes:
        minutes: the total time of the run in minutes.
        step: the seconds of a step, measured before the first step.
        used: the seconds so far.
        looked, ahead: `used` and the remaining steps at the last review of the plan.
        gone: the steps since the last review.
        length: the planned number of steps.
        blocks: the mean seconds of a step in each of the last blocks.
        steps, seconds: the steps and seconds of the current block.
        costs: the last costs of each chore, in steps.
        fresh: the seconds of chores in the current block.
        threads: the number of threads that an earlier version chose.
    """

    minutes: float
    step: float
    used: float = 0.0
    looked: float = 0.0
    ahead: int = 0
    gone: int = 0
    length: int = 0
    blocks: list[float] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    costs: dict[str, list[float]] = field(default_factory=dict)
    fresh: dict[str, float] = field(default_factory=dict)
    threads: int | None = None

    @property
    def total(self) -> float:
        """Total time in seconds."""
        return 60 * self.minutes

    @property
    def seconds_left(self) -> float:
        """Remaining seconds, negative after the end."""
        return self.total - self.used

    @property
    def pace(self) -> float:
        """Current seconds per step."""
        return median(self.blocks) if self.blocks else self.step

    def _is_over(self, seconds: float, steps: int) -> bool:
        """Whether the interval between two reviews of the plan is over."""
        seconds_left = self.total - self.looked
        interval = max(min(self.total / LOOKS, seconds_left / 2), self.total / BETWEEN)
        return seconds >= interval or steps >= min(self.length / LOOKS, self.ahead / 2)

    # -- counting ----------------------------------------------------------------------------------

    def count_step(self, seconds: float, settled: bool) -> None:
        """Count another step. `settled` means that the device has finished its work."""
        self.used, self.gone = self.used + seconds, self.gone + 1
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        if settled and self._is_over(BLOCKS * self.seconds, BLOCKS * self.steps):
            now = self.seconds / self.steps
            for name, took in self.fresh.items():
                self.costs[name][-1] = min(self.costs[name][-1], took / now)
            self.blocks = [*self.blocks, now][-BLOCKS:]
            self.steps, self.seconds, self.fresh = 0, 0.0, {}

    def count(self, seconds: float, chore: str | None = None) -> None:
        """Count time without steps, for a chore or other work.

        The cost of a chore is kept in steps, because other load slows down both: in steps just
        before the chore, or, if that is less, just after it, in case the load started with it.
        """
        self.used += seconds
        if chore is not None:
            now = self.seconds / self.steps if self.steps else [self.step, *self.blocks][-1]
            self.costs[chore] = [*self.costs.get(chore, ()), seconds / now][-COSTS:]
            self.fresh[chore] = seconds

    # -- planning ----------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether to review the plan now."""
        return self._is_over(self.used - self.looked, self.gone)

    def estimate_seconds(self, step: int, steps: int, chores: Chores) -> float:
        """Estimate the seconds from `step` steps to the end of a run of `steps`."""
        work = list(chores(steps))
        costs = [median(self.costs.get(c.name, (c.cost,))) for c in work]
        between = sum((c.times(step, steps) - 1) * x for c, x in zip(work, costs, strict=True))
        last = min(sum(costs) * self.pace, MOST * self.total)
        return (steps - step + between) * self.pace + last

    def plan(self, step: int, chores: Chores, min_steps: int = 1) -> int:
        """Return the number of steps that fills the remaining time, at least `min_steps` more."""
        steps = step + min_steps
        more = range(steps + 1, steps + 1 + max(0, int(self.seconds_left / self.pace)))
        # The nearest number of steps: half a step more is near enough.
        limit = self.seconds_left + self.pace / 2
        return self._record_review(
            step, steps + bisect(more, limit, key=lambda n: self.estimate_seconds(step, n, chores))
        )

    def replan(self, step: int, steps: int, chores: Chores) -> int:
        """Review the plan of `steps` steps, and return the same or a better number of steps."""
        missed = self.estimate_seconds(step, steps, chores) - self.seconds_left
        if abs(missed) > TOLERANCE * self.total:
            return self.plan(step, chores)
        return self._record_review(step, steps)

    def _record_review(self, step: int, steps: int) -> int:
        self.looked, self.ahead, self.gone, self.length = self.used, steps - step, 0, steps
        return steps


def choose_batch_size(
    seconds: float, step_seconds: Callable[[int], float], min_batch_size: int = SMALLEST
) -> int:
    """Return the largest batch size whose `ENOUGH` steps fit into the seconds of a run.

    A short run benefits from more steps, a long run from better steps: after ten minutes, batches
    of 32 were ahead of 64 on three data sets and level on one, at about 4,500 and 2,500 steps
    (benchmarks/README.md).

    Args:
        step_seconds: function from a batch size to the seconds of its step.
        min_batch_size: the smallest batch size that the processes can share.
    """
    fitting = (batch for batch, steps in ENOUGH.items() if steps * step_seconds(batch) <= seconds)
    return max((min_batch_size, *fitting))


class Laps:
    """Clock that returns the seconds since its last call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._since = clock, clock()

    def __call__(self) -> float:
        """Return the seconds since the last call."""
        before, self._since = self._since, self.clock()
        return self._since - before
