"""Measure the time of a step on a network that is thrown away, and what follows from it: batch,
steps, whether they are worth it, and what a training would cost."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.options import to_toml
from diffuse_cli.config.train_options import TrainConfig, to_file
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.system.devices import machine
from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.training import previews
from diffuse_cli.training.configuration import batched
from diffuse_cli.training.initial_weights import first_weights
from diffuse_cli.training.memory_estimate import SLACK, cost, parted, split
from diffuse_cli.training.monitor import chores
from diffuse_cli.training.plan import Plan, check_batch, prepare
from diffuse_cli.training.run_length import cut_short, duration, fewest, too_few, too_long
from diffuse_cli.training.time_budget import FIRST, Budget, batch_for
from diffuse_cli.training.trainer import Trainer

TASK = "measuring the time of a step"

SECONDS, SHARE, BRIEFLY = 20.0, 0.05, 1.0
"""Measuring takes at most so many seconds, or this share of --minutes, or, of very few minutes, so
many seconds."""

WARM_UP, LEAST, SETTLED = 3, 5, 5.0
"""Steps that do not count, steps that do, and the seconds after which more of them add nothing."""

RATIO, TRIES = 4, 3
"""From one number of images that is tried to the next, and steps of each."""

PASSES, BESIDE = 2, 2
"""Steps of sampling that are timed, after one that is not, if all take at most 1/BESIDE of the time
that steps have."""

LARGE, PART = 2**28, 4
"""An image that keeps so many bytes for its backward pass is first tried at 1/PART of its sides."""


class Stopwatch:
    """Times steps until its seconds are spent.

    It begins with one image a process, or with a part of one: a whole step may take hours. What
    the time does not suffice for is extrapolated from the largest steps that it did. A network that
    compiles takes longer: it is measured as it will be trained.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, seconds: float) -> None:
        self.plan, self.accelerator, self.budget = plan, accelerator, seconds
        self.spent, self.taken, self.total = 0.0, 0, max(1, round(seconds))
        self._began = time.monotonic()
        self._known: list[tuple[int, float]] = []
        self._trainer: Trainer | None = None

    def seconds(self, config: TrainConfig, *, roughly: bool = False) -> Work[float]:
        """The time of a step of a complete configuration, on the slowest process; `roughly` leaves
        most of the seconds for others."""
        assert config.batch_size is not None
        plan = dataclasses.replace(self.plan, config=config)
        images, parts = config.batch_size, config.accumulation
        if not config.compile:
            yield from self._climb(plan, math.ceil(images / parts) - (not roughly))
            if roughly or not self._suffices(images, parts):
                return self._expected(images, parts)
        return (yield from self._time(plan, images, parts, WARM_UP + LEAST, SETTLED))

    def a_pass(self, plan: Plan, step: float) -> Work[float | None]:
        """The time in which an image passes through the network for a preview, on the slowest
        process, after steps of `step` seconds were timed; None if there is no time for it."""
        images, times = previews.PREVIEW_IMAGES, list[float]()
        passes = previews.passes_of_denoising(plan, images)
        guess = step * passes / previews.passes_of_step(plan)
        trainer = self._trainer
        if trainer is None or (1 + PASSES) * guess > self.budget / BESIDE:
            return None
        drawings = previews.draw_by_default(plan, trainer.ema_net, images, trainer.device)
        while len(times) < 1 + PASSES:
            yield Progress(TASK, min(int(self.spent), self.total - 1), self.total)
            began = time.monotonic()
            if next(drawings, None) is None:
                break
            trainer.wait()
            times.append(time.monotonic() - began)
        return float(max(gather_object([median(times[1:] or times)]))) / passes

    def elapsed(self) -> float:
        """The seconds since it was made, on the slowest process: all must plan alike."""
        return float(max(gather_object([time.monotonic() - self._began])))

    def _climb(self, plan: Plan, most: int) -> Work[None]:
        """Time a few steps of one image a process, then of more and more, but of `most` at most."""
        size = self.accelerator.num_processes
        if not self._known:
            guess = yield from self._by_a_part(plan)
            if self.spent + 2 * guess > self.budget:
                self._known.append((size, guess))
        while size <= most:
            if self._suffices(size) and (not self._known or size > self._known[-1][0]):
                self._known.append((size, (yield from self._time(plan, size, 1, TRIES))))
            size *= RATIO

    def end(self) -> Work[None]:
        """Free the memory, if anything was measured."""
        if self._trainer is not None:
            self._trainer = None
            self.accelerator.free_memory()
        yield Progress(TASK, self.total, self.total)

    def _by_a_part(self, plan: Plan) -> Work[float]:
        """The time of a step of one image a process, guessed from a part of it; 0 if the images are
        small, or the network does not suit their part."""
        blueprint, size = plan.blueprint, plan.blueprint.space.size
        if cost(plan.config, blueprint, self.accelerator.device.type).image < LARGE:
            return 0.0
        small = tuple(side // PART for side in size)
        corner: Any = (..., *map(slice, small))
        images, pairs = plan.data.images, plan.data.pairs
        data = dataclasses.replace(
            plan.data,
            images=dataclasses.replace(images, stored=images.stored[corner]),
            pairs=pairs.cut(corner) if pairs else None,
        )
        space = dataclasses.replace(blueprint.space, size=small)
        blueprint = dataclasses.replace(blueprint, space=space)
        part = dataclasses.replace(plan, blueprint=blueprint, data=data)
        try:
            seconds = yield from self._time(part, self.accelerator.num_processes, 1, TRIES)
        except DiffuseError:  # a size that it cannot halve
            seconds = 0.0
        self._trainer = None
        return seconds * math.prod(size) / math.prod(small)

    def _suffices(self, images: int, parts: int = 1) -> bool:
        """Whether two such steps can still be taken; the first that is tried always is."""
        return not self._known or self.spent + 2 * self._expected(images, parts) <= self.budget

    def _expected(self, images: int, parts: int = 1) -> float:
        """The time of a step, extrapolated; another image takes at least half of the mean."""
        (before, early), (most, late) = [(0, 0.0), *self._known][-2:]
        each = late / most
        slope = min(max((late - early) / (most - before), each / 2), each)
        return parts * (late + slope * (images / parts - most))

    def _time(
        self, plan: Plan, images: int, parts: int, least: int, settled: float = 0.0
    ) -> Work[float]:
        """The median time of a step."""
        if self._trainer is None:
            self._trainer = Trainer(plan, self.accelerator)
        self._trainer.resize(images, parts)
        times: list[float] = []
        while len(times) < least or sum(times[WARM_UP:]) < settled:
            done = min(int(self.spent), self.total - 1)
            yield Progress(TASK, done, self.total, f"seconds, {images:,} images a step")
            began = time.monotonic()
            self._trainer.step(self.taken)
            self._trainer.wait()
            # Several processes must agree on the number of steps.
            times.append(float(max(gather_object([time.monotonic() - began]))))
            self.taken, self.spent = self.taken + 1, self.spent + times[-1]
            over = self.spent + times[-1] > self.budget and not plan.config.compile
            if over and (len(times) > 1 or times[0] > self.budget):
                break
        return median(times[min(WARM_UP, len(times) - 1) :])


# -- choosing -------------------------------------------------------------------------------------

# The batch and the steps that fill a time.

TRIAL = 16
"""The batch of the trial."""


def fill_minutes(
    plan: Plan, accelerator: Accelerator, spent: float = 0.0
) -> Work[tuple[TrainConfig, Budget]]:
    """The configuration with the steps that fill its minutes, and what is left of these after
    `spent` seconds and the measuring.

    An open batch size is chosen to give a short run enough steps.
    """
    processes = accelerator.num_processes
    config, minutes = plan.config, plan.config.minutes
    assert minutes is not None
    watch = Stopwatch(plan, accelerator, max(BRIEFLY, min(SECONDS, SHARE * minutes * 60)))
    chosen, least = config.batch_size is not None, processes * config.accumulation
    network = plan.blueprint.space, plan.blueprint.config
    trial = config if chosen else batched(config, max(TRIAL, least), *network)
    trial = split(trial, plan.room, processes)
    seconds = yield from watch.seconds(trial, roughly=not chosen)
    if chosen:
        config = trial
    else:
        assert trial.batch_size is not None
        images = trial.batch_size * minutes * 60 / seconds
        config = batched(config, batch_for(images, least), *network)
        config = split(config, plan.room, processes)
        seconds = yield from watch.seconds(config)
    plan = dataclasses.replace(plan, config=config)
    a_pass = yield from watch.a_pass(plan, seconds)
    yield from watch.end()
    own = chores(plan, a_pass / seconds)(1) if a_pass else ()
    costs = {chore.name: [chore.cost] for chore in own if chore.cost}
    budget = Budget(minutes, seconds, spent + watch.elapsed(), costs=costs)
    steps = budget.plan(0, chores(plan), FIRST)
    return dataclasses.replace(config, steps=steps, minutes=None), budget


def seconds_in_all(plan: Plan, budget: Budget) -> float:
    """The seconds of a step with its share of all else, in the shortest run that draws anything."""
    least = fewest(plan.config)
    own = budget.needed(0, least, chores(plan))
    return min(own / (1 - SHARE), own + SECONDS) / least


def first_plan(
    plan: Plan, accelerator: Accelerator, done: int = 0, spent: float = 0.0
) -> Work[tuple[TrainConfig, Budget | None]]:
    """The configuration with its steps from `done` on, or those that fill its minutes, of which
    `spent` seconds are over; says where they are too few."""
    config, seconds = plan.config, None
    budget: Budget | None = None
    if config.minutes is not None:
        config, budget = yield from fill_minutes(plan, accelerator, spent)
        seconds = seconds_in_all(dataclasses.replace(plan, config=config), budget)
        config = dataclasses.replace(config, steps=done + config.steps)
        yield Notice(
            f"{budget.step:.3g} s a step of {config.batch_size} images: {config.steps:,} steps"
        )
    config = yield from parted(config, plan.room, accelerator.num_processes)
    if not done:
        yield from too_few(config, seconds)
    return config, budget


def seconds_a_step(plan: Plan, accelerator: Accelerator) -> Work[float]:
    """The time of a step of a plan whose configuration is complete."""
    watch = Stopwatch(plan, accelerator, SECONDS)
    seconds = yield from watch.seconds(plan.config)
    yield from watch.end()
    return seconds


# -- estimating -----------------------------------------------------------------------------------

# What a training would cost, for `--dry-run`.


@dataclass(frozen=True)
class TrainingEstimate:
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


def estimate(config: TrainConfig) -> Work[TrainingEstimate]:
    """Read the data, complete the configuration, and time a few steps that are thrown away.

    Raises:
        DiffuseError: what training itself would raise before its first step.
    """
    with machine(config.precision, config.device, accumulation=config.accumulation) as accelerator:
        check_batch(config, accelerator.num_processes)
        plan = yield from prepare(config, accelerator)
        if not config.goes_on:
            yield from first_weights(plan.config, plan.blueprint)
        done, budget = yield from first_plan(plan, accelerator)
        plan = dataclasses.replace(plan, config=done)
        if budget:
            seconds, total = budget.step, budget.used + budget.needed(0, done.steps, chores(plan))
        else:
            seconds = yield from seconds_a_step(plan, accelerator)
            total = seconds * done.steps
        device = accelerator.device.type
    yield from cut_short(done)
    yield from too_long(done, seconds, done.steps)
    assert done.batch_size is not None
    part = -(-done.batch_size // done.accumulation)
    memory = cost(done, plan.blueprint, device).of(part, SLACK.get(device, 1.0))
    with torch.device("meta"):
        parameters = count_parameters(plan.blueprint.build())
    return TrainingEstimate(done, parameters, memory, total)
