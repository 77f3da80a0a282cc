"""The time of a run by --minutes: how much is left, and the steps that fill it.

All is arithmetic on seconds that others measured, and all of it is in a checkpoint, so that a
resumed run decides as one in one go would.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

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

ENOUGH = {16: 1536, 32: 1536, 64: 3072}
"""Steps that a run has before it takes batches of so many images. Those of 32 take little more than
half of the time of 64, so that halving gains steps; those of 16 do not (benchmarks/README.md)."""

SMALLEST = 8
"""The smallest batch."""

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


@dataclass
class Budget:
    """The time that a run has, and what it knows of its speed; plain values, for a checkpoint.

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
        threads: that a run of an earlier version chose to compute with.
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

    def count_step(self, seconds: float, settled: bool) -> None:
        """Count another step; `settled` if nothing of it is still under way on the device."""
        self.used, self.gone = self.used + seconds, self.gone + 1
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        if settled and self._over(BLOCKS * self.seconds, BLOCKS * self.steps):
            now = self.seconds / self.steps
            for name, took in self.fresh.items():
                self.costs[name][-1] = min(self.costs[name][-1], took / now)
            self.blocks = [*self.blocks, now][-BLOCKS:]
            self.steps, self.seconds, self.fresh = 0, 0.0, {}

    def count(self, seconds: float, chore: str | None = None) -> None:
        """Count some time without steps: a chore, or anything else.

        What a chore costs is noted in steps, as a load makes both slower: in those just before it,
        or, if they are fewer, just after it, for a load that came with it.
        """
        self.used += seconds
        if chore is not None:
            now = self.seconds / self.steps if self.steps else [self.step, *self.blocks][-1]
            self.costs[chore] = [*self.costs.get(chore, ()), seconds / now][-COSTS:]
            self.fresh[chore] = seconds

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

    def plan(self, done: int, chores: Chores, least: int = 1) -> int:
        """The number of steps that fills the time that is left; at least so many more."""
        steps = done + least
        more = range(steps + 1, steps + 1 + max(0, int(self.left / self.pace)))
        # The nearest number of steps: half a step more is near enough.
        most = self.left + self.pace / 2
        return self._look(
            done, steps + bisect(more, most, key=lambda n: self.needed(done, n, chores))
        )

    def replan(self, done: int, steps: int, chores: Chores) -> int:
        """Look at the plan of a run of `steps` steps: the same number where it holds, or one that
        does."""
        missed = self.needed(done, steps, chores) - self.left
        if abs(missed) > TOLERANCE * self.total:
            return self.plan(done, chores)
        return self._look(done, steps)

    def _look(self, done: int, steps: int) -> int:
        self.looked, self.ahead, self.gone, self.length = self.used, steps - done, 0, steps
        return steps


def batch_for(images: float, least: int = 1) -> int:
    """The batch size of a run that sees `images` images: the largest that leaves it `ENOUGH` steps.

    A short run learns by the number of its steps, a long one by their quality: after ten minutes
    batches of 32 were ahead of 64 on three data sets and level on one, at some 4,500 and 2,500
    steps (benchmarks/README.md).
    """
    fitting = (batch for batch, steps in ENOUGH.items() if images >= batch * steps)
    return max(SMALLEST, least, *fitting)


class Laps:
    """The seconds since it was asked last, by a clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self._since = clock, clock()

    def __call__(self) -> float:
        before, self._since = self._since, self.clock()
        return self._since - before
