"""How far a run is, and the learning rate there.

What depends on the length of a run (its learning rate, its snapshots, its early average) goes by
the part of the way that is behind it. The length may be planned again as the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.config import TrainConfig

WHOLE = ((1.0, 1.0),)
"""A way of one part."""

RISE = 10
"""Warm-up takes at most 1/RISE of a run."""


@dataclass(frozen=True)
class Course:
    """The way of a run to its last step.

    A run of a fixed length makes an equal part of its way with each step. Where the length is
    planned again, the way so far stays, and the steps that are left share the rest equally.

    Attributes:
        steps: after so many the run ends.
        fewest: the least of all lengths that were planned so far.
        since, passed: where it was planned last: after so many steps, such a part of the way, in
            [0, 1), was behind it.
    """

    steps: int
    fewest: int
    since: int = 0
    passed: float = 0.0

    @classmethod
    def of(cls, steps: int) -> Course:
        """The way of a run of a fixed length."""
        return cls(steps, steps)

    def revised(self, done: int, steps: int) -> Course:
        """The way from here, after `done` steps, to the end of a run of another length."""
        return Course(steps, min(self.fewest, steps), done, self.at(done))

    def at(self, done: int) -> float:
        """The part of the way after `done` steps, from 0 to 1 at the end."""
        return self.passed + (1 - self.passed) * ((done - self.since) / (self.steps - self.since))

    def place(self, done: int) -> float:
        """After how many steps a run of as many, but of a fixed length, is as far as this one is
        after `done`: exactly `done` where nothing was planned again."""
        left = self.steps / (self.steps - self.since)
        return self.passed * self.steps + (1 - self.passed) * (done - self.since) * left

    def passes(self, share: float, done: int) -> bool:
        """Whether the step that makes `done` comes to a share of the way, or goes beyond it."""
        return self.at(done - 1) < share <= self.at(done)

    def crosses(self, every: int, done: int) -> bool:
        """Whether the step that makes `done` comes to a multiple of `every` places."""
        return self.place(done) // every > self.place(done - 1) // every


def warmup_of(config: TrainConfig, fewest: int | None = None) -> int:
    """The steps over which the learning rate rises: a tenth of the run at most; of the shortest
    plan where there were several, so that the rate does not fall back into its rise."""
    return min(config.warmup, (fewest or config.steps) // RISE)


def lr_at(
    config: TrainConfig, course: Course, step: int, parts: Sequence[tuple[float, float]] = WHOLE
) -> float:
    """The learning rate of the step after `step` steps: a linear rise, and half a cosine to 0 over
    the way.

    Args:
        parts: of the way, each with a cosine of its own: where it ends, and the share of the rate.
    """
    assert config.lr is not None
    warmup = warmup_of(config, course.fewest)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    place, begins = course.place(step), 0.0
    for share_of_way, share in parts:
        ends = share_of_way * course.steps
        if place < ends:
            angle = math.pi * (place - begins) / (ends - begins)
            return config.lr * share * rise * 0.5 * (1 + math.cos(angle))
        begins = ends
    return 0.0
