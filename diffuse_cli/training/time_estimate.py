"""What follows from the seconds that a step takes: batch, steps, and whether they are worth it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from diffuse_cli.config import TrainConfig
from diffuse_cli.config.options import to_toml
from diffuse_cli.config.train_options import to_file
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.system.devices import machine
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training.configuration import batched
from diffuse_cli.training.memory_estimate import SLACK, cost, images_at_a_time, smaller_side, split
from diffuse_cli.training.monitor import chores
from diffuse_cli.training.optimization import warmup_of
from diffuse_cli.training.plan import Plan, check_batch, prepare, settled
from diffuse_cli.training.step_timer import Stops, Stopwatch, fastest
from diffuse_cli.training.time_budget import FIRST, Budget

SECONDS, SHARE, BRIEFLY = 20.0, 0.05, 1.0
"""Measuring takes at most so many seconds, or this share of --minutes, or, of very few minutes, so
many seconds."""

ENOUGH = {16: 1536, 32: 1536, 64: 3072}
"""Steps that a run has before it takes batches of so many images. Those of 32 take little more than
half of the time of 64, so that halving gains steps; those of 16 do not (benchmarks/README.md)."""

SMALLEST, TRIAL = 8, 16
"""The smallest batch, and that of the trial."""

FEWEST = 300
"""Steps of `SMALLEST` images after which samples are as good as blurred images by KID; after half
of them they are hardly better than noise (benchmarks/README.md)."""

DAY, MINUTE, SLOW = 24 * 60 * 60, 60, 10
"""Seconds of a run that are worth a warning, or a word, and of its first steps that tell."""


def parted(config: TrainConfig, room: int, processes: int) -> Work[TrainConfig]:
    """`config` in parts of at most `room` images; tells the user if that changes it."""
    done = split(config, room, processes)
    if done.accumulation != config.accumulation:
        yield Notice(
            f"the {done.batch_size} images of a batch do not fit into memory at once: they are "
            f"computed in {done.accumulation} parts (--accumulation {done.accumulation})",
            warning=True,
        )
    return done


def fill_minutes(
    plan: Plan, accelerator: Accelerator, room: int, spent: float = 0.0
) -> Work[tuple[TrainConfig, Budget]]:
    """The configuration with the steps that fill its minutes, and what is left of these after
    `spent` seconds and the measuring.

    An open batch size is chosen to give a short run enough steps. At most `room` images are
    computed at a time.
    """
    processes = accelerator.num_processes
    config, minutes = plan.config, plan.config.minutes
    assert minutes is not None
    watch = Stopwatch(plan, accelerator, max(BRIEFLY, min(SECONDS, SHARE * minutes * 60)))
    chosen, least = config.batch_size is not None, processes * config.accumulation
    network = plan.blueprint.space, plan.blueprint.config
    trial = config if chosen else batched(config, max(TRIAL, least), *network)
    trial, stops = split(trial, room, processes), Stops()
    seconds = yield from watch.seconds(trial, roughly=not chosen)
    threads = yield from fastest(watch, trial, stops, accelerator)
    if threads is not None:
        seconds = yield from watch.seconds(trial, roughly=not chosen)
    if chosen:
        config = trial
    else:
        assert trial.batch_size is not None
        images = trial.batch_size * minutes * 60 / seconds
        config = batched(config, batch_for(images, least), *network)
        config = split(config, room, processes)
        seconds = yield from watch.seconds(config)
    plan = dataclasses.replace(plan, config=config)
    a_pass = yield from watch.a_pass(plan, seconds)
    yield from watch.end()
    own = chores(plan, a_pass / seconds)(1) if a_pass else ()
    costs = {chore.name: (chore.cost,) for chore in own if chore.cost}
    budget = Budget(minutes, seconds, spent + watch.elapsed(), costs=costs, threads=threads)
    budget, steps = budget.plan(0, chores(plan), FIRST)
    return dataclasses.replace(config, steps=steps, minutes=None), budget


def seconds_in_all(plan: Plan, budget: Budget) -> float:
    """The seconds of a step with its share of all else, in the shortest run that draws anything."""
    least = fewest(plan.config)
    own = budget.needed(0, least, chores(plan))
    return min(own / (1 - SHARE), own + SECONDS) / least


def seconds_a_step(plan: Plan, accelerator: Accelerator) -> Work[float]:
    """The time of a step of a plan whose configuration is complete."""
    watch = Stopwatch(plan, accelerator, SECONDS)
    seconds = yield from watch.seconds(plan.config)
    yield from watch.end()
    return seconds


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
    """Says once, after `SLOW` seconds of steps, what the others will take, and whether fewer
    threads may be faster.

    Args:
        stops: of a run that could compute with fewer threads.
    """

    def __init__(
        self, config: TrainConfig, start: int, end: int, stops: Stops | None = None
    ) -> None:
        self.config, self.end, self.stops = config, end, stops
        self._first, self._began, self._told = start + 1, time.monotonic(), False
        self._from = start

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
            if self.stops and self.stops.busy:
                yield Notice(
                    "other programs keep this machine busy: OMP_NUM_THREADS=1 may be faster"
                )
        elif done == self._first:
            self._from, self._began = done, now


def duration(seconds: float) -> str:
    """`12.3 minutes`, hours from 90 minutes on, days from 48 hours on."""
    for most, unit, name in ((90 * 60, 60, "minutes"), (2 * DAY, 3600, "hours")):
        if seconds <= most:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / DAY:,.0f} days"


def batch_for(images: float, least: int = 1) -> int:
    """The batch size of a run that sees `images` images: the largest that leaves it `ENOUGH` steps.

    A short run learns by the number of its steps, a long one by their quality: after ten minutes
    batches of 32 were ahead of 64 on three data sets and level on one, at some 4,500 and 2,500
    steps (benchmarks/README.md).
    """
    fitting = (batch for batch, steps in ENOUGH.items() if images >= batch * steps)
    return max(SMALLEST, least, *fitting)


# -- estimating -----------------------------------------------------------------------------------

# What a training would cost, for `--dry-run`.


@dataclass(frozen=True)
class Estimate:
    """A complete configuration with its parameters, memory in bytes and seconds."""

    config: TrainConfig
    parameters: int
    memory: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "config": to_file(self.config, control=False),
            "parameters": self.parameters,
            "memory_bytes": self.memory,
            "seconds": round(self.seconds, 1),
        }

    def to_toml(self) -> str:
        """The configuration as TOML, with the costs as comments."""
        costs = (
            f"# {self.parameters:,} parameters, about {self.memory / 2**30:.2f} GiB, "
            f"about {duration(self.seconds)} on this machine"
        )
        return f"{costs}\n\n{to_toml(to_file(self.config, control=False))}"


def estimate(config: TrainConfig) -> Work[Estimate]:
    """Read the data, complete the configuration, and time a few steps that are thrown away.

    Raises:
        DiffuseError: what training itself would raise before its first step.
    """
    with machine(config.precision, config.device, accumulation=config.accumulation) as accelerator:
        check_batch(config, accelerator.num_processes)
        plan = settled((yield from prepare(config)), accelerator)
        room = images_at_a_time(plan, accelerator)
        in_all = None
        if plan.config.minutes is not None:
            done, budget = yield from fill_minutes(plan, accelerator, room)
            filled = dataclasses.replace(plan, config=done)
            seconds, in_all = budget.step, seconds_in_all(filled, budget)
            total = budget.used + budget.needed(0, done.steps, chores(filled))
        else:
            done = yield from parted(plan.config, room, accelerator.num_processes)
            seconds = yield from seconds_a_step(dataclasses.replace(plan, config=done), accelerator)
            total = seconds * done.steps
        device = accelerator.device.type
    yield from cut_short(done)
    yield from too_few(done, in_all)
    yield from too_long(done, seconds, done.steps)
    assert done.batch_size is not None
    part = -(-done.batch_size // done.accumulation)
    memory = cost(done, plan.blueprint, device).of(part, SLACK.get(device, 1.0))
    with torch.device("meta"):
        parameters = count_parameters(plan.blueprint.build())
    return Estimate(done, parameters, memory, total)
