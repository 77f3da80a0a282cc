"""Warnings of a run that is too short to draw anything, or takes days."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.system.events import Notice
from diffuse_cli.training.memory_estimate import smaller_side
from diffuse_cli.training.optimization import warmup_of
from diffuse_cli.training.time_budget import SMALLEST

FEWEST = 300
"""Steps of `SMALLEST` images after which samples are as good as blurred images by KID; after half
of them they are hardly better than noise (benchmarks/README.md)."""

DAY, MINUTE, SLOW = 24 * 60 * 60, 60, 10
"""Seconds of a run that are worth a warning, or a word, and of its first steps that tell."""


def cut_short(config: TrainConfig) -> Iterator[Notice]:
    """Notices of options that the number of steps limits."""
    if config.warmup != TrainConfig.warmup and config.warmup > warmup_of(config):
        yield Notice(
            f"--warmup {config.warmup:,} is more than a tenth of {config.steps:,} steps: the "
            f"learning rate rises over {warmup_of(config):,}"
        )
    if config.stop_at is not None and config.stop_at > config.steps:  # of --minutes
        yield Notice(f"--stop-at {config.stop_at:,} is beyond the {config.steps:,} steps")


def fewest(config: TrainConfig) -> int:
    """Steps before a model draws anything: fewer of more images, 150 of 64."""
    assert config.batch_size is not None
    return math.ceil(FEWEST * math.cbrt(SMALLEST / config.batch_size))


def too_few(config: TrainConfig, seconds: float | None = None) -> Iterator[Notice]:
    """A warning of a run that draws nothing, with what to type instead; `seconds` is the time of a
    step, with its share of all else, where that decided the number of steps."""
    least = fewest(config)
    if config.steps >= least or config.init:
        return
    drawn = "nothing" if config.steps < least / 2 else "little"
    ways = _ways(config, seconds, config.steps / least) if seconds else f"--steps {least}"
    yield Notice(f"{config.steps:,} steps will draw {drawn}: try {ways}", warning=True)


def too_long(config: TrainConfig, seconds: float, left: int) -> Iterator[Notice]:
    """A warning of a run whose `left` steps take more than a day, with what to type instead."""
    if left * seconds > DAY:
        yield Notice(
            f"{left:,} steps of {seconds:.3g} s take {duration(left * seconds)}: try "
            f"{_ways(config, seconds, DAY / (left * seconds))}",
            warning=True,
        )


def _ways(config: TrainConfig, seconds: float, ratio: float) -> str:
    """What to type for steps that take at most `ratio` of their time, or the least --minutes that
    draw anything, if there is nothing else or they are less than a day; in two digits."""
    ways = []
    if config.preset not in (None, "tiny"):
        ways.append("--preset tiny")
    elif config.size and (side := smaller_side(config.size, ratio)):
        ways.append(f"--size {side}")
    least = fewest(config) * seconds
    if least < DAY or not ways:
        unit = 10.0 ** (math.floor(math.log10(least / 60)) - 1)
        ways.append(f"--minutes {math.ceil(round(least / 60 / unit, 6)) * unit:g}")
    return ", or ".join(ways)


class Forecast:
    """Says once, after `SLOW` seconds of steps, what the others will take."""

    def __init__(self, config: TrainConfig, start: int, end: int) -> None:
        self.config, self.end, self._first, self._from = config, end, start + 1, start
        self._began, self._told = time.monotonic(), False

    def after(self, done: int) -> Iterator[Notice]:
        """To be called after every step. The first one counts only if it is slow: it finds its
        kernels, or compiles."""
        now, left = time.monotonic(), self.end - done
        slow = now - self._began > SLOW and not (self.config.compile and done == self._first)
        if slow and not self._told:
            self._told = True
            seconds = (now - self._began) / (done - self._from)
            if done < self.config.log_every and left * seconds > MINUTE:
                yield Notice(f"{seconds:.3g} s a step: {duration(left * seconds)} to go")
            yield from too_long(self.config, seconds, left)
        elif done == self._first:
            self._from, self._began = done, now


def duration(seconds: float) -> str:
    """`12.3 minutes`, hours from 90 minutes on, days from 48 hours on."""
    for most, unit, name in ((90 * 60, 60, "minutes"), (2 * DAY, 3600, "hours")):
        if seconds <= most:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / DAY:,.0f} days"
