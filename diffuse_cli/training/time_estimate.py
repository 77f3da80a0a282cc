"""Measure the time of a step on a temporary network, and choose the batch size and the number of
steps from it."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.data.summary import plural
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.devices import device_type
from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.training import previews
from diffuse_cli.training.chores import ERRORS, plan_chores
from diffuse_cli.training.configuration import with_batch_size
from diffuse_cli.training.memory_estimate import (
    estimate_memory,
    fit_into_memory,
    split_batch,
)
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.run_length import (
    fewest_steps,
    warn_of_few_steps,
)
from diffuse_cli.training.time_budget import FIRST, SMALLEST, Budget, choose_batch_size
from diffuse_cli.training.trainer import Trainer

TASK = "measuring the time of a step"

SECONDS, SHARE, BRIEFLY, QUICK = 20.0, 0.05, 1.0, 3.0
"""Measuring takes at most SECONDS, or this fraction of --minutes, but at least BRIEFLY seconds.
--dry-run without --measure takes at most QUICK seconds."""

WARM_UP, LEAST, SETTLED = 3, 5, 1.0
"""Steps that do not count, steps that count, and the seconds after which more steps are not needed.
"""

RATIO, TRIES = 4, 3
"""The ratio between numbers of images that are tried, and the steps of each."""

PASSES, BESIDE = 2, 2
"""Timed sampling steps, after one untimed step, if all take at most 1/BESIDE of the time for
training steps."""

LARGE, PART = 2**28, 4
"""An image that keeps LARGE bytes or more for its backward pass is first tried at 1/PART of its
sides."""


class Stopwatch:
    """Measurement of the time of steps within a time limit.

    It starts with one image per process, or with a part of an image, because a whole step may take
    hours. Larger steps are extrapolated from the largest measured steps if the time does not
    suffice. A compiled network may exceed the limit, because it is measured as it is trained.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, seconds: float) -> None:
        self.quick = plan.config.dry_run and not plan.config.measure
        self.plan, self.accelerator = plan, accelerator
        self.budget = min(seconds, QUICK) if self.quick else seconds
        self.spent, self.step, self.total = 0.0, 0, max(1, round(self.budget))
        self._began = time.monotonic()
        self._times: list[tuple[int, float]] = []
        self._trainer: Trainer | None = None

    def seconds(self, config: TrainConfig) -> Work[float]:
        """Measure the time of a step of a complete configuration, on the slowest process.

        --dry-run without --measure predicts a step if one image per process would take longer than
        QUICK seconds, without building the network.
        """
        assert config.batch_size is not None
        plan = dataclasses.replace(self.plan, config=config)
        images, parts = config.batch_size, config.accumulation
        processes = self.accelerator.num_processes
        if self.quick and predict_step_seconds(plan, processes, processes) > QUICK:
            yield Notice("a step is too slow to time quickly: --measure replaces this estimate")
            return predict_step_seconds(plan, images, processes)
        if not config.compile:
            yield from self._measure_growing_steps(plan, math.ceil(images / parts) - 1)
            if not self._suffices(images, parts):
                return self._predict_step(images, parts)
        return (yield from self._time(plan, images, parts, WARM_UP + LEAST, SETTLED))

    def measure_pass(self, plan: Plan, step: float) -> Work[float | None]:
        """Measure the time of an image's pass in sampling, on the slowest process.

        Returns None if the time limit does not allow it.

        Args:
            step: the seconds of a training step.
        """
        images, times = min(previews.PREVIEW_IMAGES, plan.room), list[float]()
        passes = previews.passes_of_denoising(plan, images)
        guess = step * passes / previews.passes_of_step(plan)
        trainer = self._trainer
        if trainer is None or (1 + PASSES) * guess > self.budget / BESIDE:
            return None
        drawings = previews.generate_by_default(plan, trainer.ema_net, images, trainer.device)
        while len(times) < 1 + PASSES:
            yield Progress(TASK, min(int(self.spent), self.total - 1), self.total)
            began = time.monotonic()
            if next(drawings, None) is None:
                break
            trainer.wait()
            times.append(time.monotonic() - began)
        return float(max(gather_object([median(times[1:] or times)]))) / passes

    def measure_elapsed(self) -> float:
        """Return the seconds since the start, on the slowest process, so that all plan alike."""
        return float(max(gather_object([time.monotonic() - self._began])))

    def _measure_growing_steps(self, plan: Plan, max_images: int) -> Work[None]:
        """Time a few steps with one image per process, then with up to `max_images` images."""
        size = self.accelerator.num_processes
        if not self._times:
            guess = yield from self._estimate_from_part(plan)
            if self.spent + 2 * guess > self.budget:
                self._times.append((size, guess))
        while size <= max_images:
            if self._suffices(size) and (not self._times or size > self._times[-1][0]):
                self._times.append((size, (yield from self._time(plan, size, 1, TRIES))))
            size *= RATIO

    def free_memory(self) -> Work[None]:
        """Free the memory of the temporary network."""
        self._drop_trainer()
        self.accelerator.free_memory()
        yield Progress(TASK, self.total, self.total)

    def _drop_trainer(self) -> None:
        """Drop the temporary network, and end its reading."""
        if self._trainer is not None:
            self._trainer.batches.close()
            self._trainer = None

    def _estimate_from_part(self, plan: Plan) -> Work[float]:
        """Estimate the time of a step with one image per process from a part of the image.

        Returns 0 if the images are small, or if the network does not accept the part.
        """
        blueprint, size = plan.blueprint, plan.blueprint.space.size
        if estimate_memory(plan.config, blueprint, self.accelerator.device.type).image < LARGE:
            return 0.0
        small = tuple(side // PART for side in size)
        corner: Any = (..., *map(slice, small))
        images, pairs = plan.data.images, plan.data.pairs
        data = dataclasses.replace(
            plan.data,
            images=dataclasses.replace(images, stored=images.stored[corner]),
            pairs=pairs.select_part(corner) if pairs else None,
        )
        space, gaussian = dataclasses.replace(blueprint.space, size=small), blueprint.gaussian
        gaussian = gaussian and dataclasses.replace(gaussian, size=small)
        blueprint = dataclasses.replace(blueprint, space=space, gaussian=gaussian)
        part = dataclasses.replace(plan, blueprint=blueprint, data=data)
        try:
            seconds = yield from self._time(part, self.accelerator.num_processes, 1, TRIES)
        except DiffuseError:  # a size that it cannot halve
            seconds = 0.0
        self._drop_trainer()
        return seconds * math.prod(size) / math.prod(small)

    def _suffices(self, images: int, parts: int = 1) -> bool:
        """Whether the time suffices for two such steps. The first measurement is always made."""
        return not self._times or self.spent + 2 * self._predict_step(images, parts) <= self.budget

    def _predict_step(self, images: int, parts: int = 1) -> float:
        """Extrapolate the time of a step. Another image takes at least half of the mean."""
        (size, seconds), (last_size, last_seconds) = [(0, 0.0), *self._times][-2:]
        mean = last_seconds / last_size
        slope = min(max((last_seconds - seconds) / (last_size - size), mean / 2), mean)
        return parts * (last_seconds + slope * (images / parts - last_size))

    def _time(
        self, plan: Plan, images: int, parts: int, min_steps: int, settled: float = 0.0
    ) -> Work[float]:
        """Return the median time of a step."""
        if self._trainer is None:
            self._trainer = Trainer(plan, self.accelerator)
        self._trainer.resize(images, parts)
        times: list[float] = []
        while len(times) < min_steps or sum(times[WARM_UP:]) < settled:
            spent = min(int(self.spent), self.total - 1)
            yield Progress(TASK, spent, self.total, f"seconds, {plural(images, 'image')} per step")
            began = time.monotonic()
            self._trainer.step(self.step)
            self._trainer.wait()
            # Several processes must agree on the number of steps.
            times.append(float(max(gather_object([time.monotonic() - began]))))
            self.step, self.spent = self.step + 1, self.spent + times[-1]
            over = self.spent + times[-1] > self.budget and not plan.config.compile
            if over and (len(times) > 1 or times[0] > self.budget):
                break
        return median(times[min(WARM_UP, len(times) - 1) :])


# -- choosing -------------------------------------------------------------------------------------

# The batch size and the steps that fill a time.

SPEEDS, GPU, HALF = {"cpu": 6e10, "mps": 2e12}, 2e13, 3
"""Floating-point operations per second of a training step in float32, on a thread of a CPU, on
Apple's GPUs, and on other GPUs. HALF is the speed-up by half precision. One core of an AMD EPYC
computes 1.3e11 in float32, and 1.9e11 to 2.6e11 in bfloat16. Speeds of GPUs are guesses."""

UPDATE = 8000
"""Operations of an optimizer step for each parameter: 20 ms on this core with `tiny`."""


@functools.lru_cache
def count_operations(blueprint: Blueprint) -> int:
    """Count the floating-point operations of a sample in a step, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        cond = blueprint.conditions.make_keywords(torch.zeros(1, dtype=torch.long))
        net = blueprint.build_on_meta()
        net(torch.zeros(1, *blueprint.input_space.shape), torch.zeros(1), **cond).sum().backward()
    return int(counter.get_total_flops())


def predict_step_seconds(plan: Plan, images: int, processes: int) -> float:
    """Predict the seconds of a step from its operations, on the slowest process.

    The prediction is the same on a busy machine, so that a choice that rests on it is, too.
    """
    device, blueprint = device_type(plan.config.device), plan.blueprint
    speed = SPEEDS.get(device, GPU) * (torch.get_num_threads() if device == "cpu" else 1)
    if plan.config.precision != "fp32":
        speed *= HALF
    parameters = sum(map(math.prod, blueprint.shapes.values()))
    operations = math.ceil(images / processes) * count_operations(blueprint)
    # Processes with different numbers of threads must choose the same batch size.
    return float(max(gather_object([(operations + UPDATE * parameters) / speed])))


def fill_minutes(
    plan: Plan, accelerator: Accelerator, spent: float = 0.0
) -> Work[tuple[TrainConfig, Budget]]:
    """Choose the steps that fill --minutes, after `spent` seconds and the measurement.

    A batch size that is not set is chosen to give a short run enough steps, from predicted times,
    because measured times depend on the load of the machine.
    """
    processes = accelerator.num_processes
    config, minutes = plan.config, plan.config.minutes
    assert minutes is not None
    watch = Stopwatch(plan, accelerator, max(BRIEFLY, min(SECONDS, SHARE * minutes * 60)))
    if config.batch_size is None:
        batch_size = choose_batch_size(
            minutes * 60,
            lambda images: predict_step_seconds(plan, images, processes),
            max(SMALLEST, processes * config.accumulation),
        )
        network = plan.blueprint.space, plan.blueprint.config
        config = with_batch_size(config, batch_size, *network)
    config = split_batch(config, plan.room, processes)
    seconds = yield from watch.seconds(config)
    plan = dataclasses.replace(plan, config=config)
    a_pass = yield from watch.measure_pass(plan, seconds)
    yield from watch.free_memory()
    chores = plan_chores(plan, a_pass / seconds)(1) if a_pass else ()
    # The errors take longer in a longer run, so their cost stays a guess.
    costs = {chore.name: [chore.cost] for chore in chores if chore.cost and chore.name != ERRORS}
    budget = Budget(minutes, seconds, spent + watch.measure_elapsed(), costs=costs)
    steps = budget.plan(0, plan_chores(plan), FIRST)
    return dataclasses.replace(config, steps=steps, minutes=None), budget


def estimate_step_seconds(plan: Plan, budget: Budget) -> float:
    """Return the seconds per step of the shortest run that learns anything, with chores."""
    min_steps = fewest_steps(plan.config)
    whole = dataclasses.replace(budget, minutes=math.inf)  # which leaves time for all chores
    seconds = whole.estimate_seconds(0, min_steps, plan_chores(plan))
    return min(seconds / (1 - SHARE), seconds + SECONDS) / min_steps


def choose_steps(
    plan: Plan, accelerator: Accelerator, step: int = 0, spent: float = 0.0
) -> Work[tuple[TrainConfig, Budget | None]]:
    """Choose the steps from `step` on, from --steps or to fill --minutes, and warn of too few.

    Args:
        spent: the seconds of --minutes that have passed.
    """
    config, seconds = plan.config, None
    budget: Budget | None = None
    if config.minutes is not None:
        config, budget = yield from fill_minutes(plan, accelerator, spent)
        seconds = estimate_step_seconds(dataclasses.replace(plan, config=config), budget)
        config = dataclasses.replace(config, steps=step + config.num_steps)
        yield Notice(
            f"{budget.step:.3g} s per step of {plural(config.batch_size or 0, 'image')}: "
            f"{plural(config.num_steps, 'step')}"
        )
    config = yield from fit_into_memory(config, plan.room, accelerator.num_processes)
    if not step:
        yield from warn_of_few_steps(config, seconds, on_cpu=accelerator.device.type == "cpu")
    return config, budget


def measure_step_seconds(plan: Plan, accelerator: Accelerator) -> Work[float]:
    """Measure the time of a step of a plan with a complete configuration."""
    watch = Stopwatch(plan, accelerator, SECONDS)
    seconds = yield from watch.seconds(plan.config)
    yield from watch.free_memory()
    return seconds
