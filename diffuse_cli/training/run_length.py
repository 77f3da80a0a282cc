"""Warn of a run that is too short to learn anything, or that takes days."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from diffuse_cli.config.presets import find_preset
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.data.summary import plural
from diffuse_cli.system import Notice, format_duration
from diffuse_cli.system.events import DAY
from diffuse_cli.training.chores import plan_chores
from diffuse_cli.training.memory_estimate import smaller_side
from diffuse_cli.training.optimization import warmup_of
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.time_budget import FIRST, SMALLEST, Budget
from diffuse_cli.training.trainer import Trainer

FEWEST = 300
"""Steps of `SMALLEST` images after which samples are as good as blurred images by KID. After half
of them they are hardly better than noise (benchmarks/README.md)."""

MINUTE, SLOW = 60, 10
"""Seconds of a run that deserves a forecast, and of the steps it is based on."""

THREAD_VARIABLES = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
"""Environment variables by which users set the number of threads."""


def warn_of_limited_options(config: TrainConfig) -> Iterator[Notice]:
    """Report options that the number of steps limits."""
    steps = plural(config.num_steps, "step")
    if config.warmup != TrainConfig.warmup and config.warmup > warmup_of(config):
        yield Notice(
            f"--warmup {config.warmup:,} is more than a tenth of {steps}: the learning rate rises "
            f"over {plural(warmup_of(config), 'step')}"
        )
    if config.stop_at is not None and config.stop_at > config.num_steps:  # with --minutes
        yield Notice(f"--stop-at {config.stop_at:,} is beyond the end of the run, {steps}")


def fewest_steps(config: TrainConfig) -> int:
    """Return the steps before a model learns anything: 150 of 64 images, more of fewer images."""
    assert config.batch_size is not None
    return math.ceil(FEWEST * math.cbrt(SMALLEST / config.batch_size))


def warn_of_few_steps(
    config: TrainConfig, seconds: float | None = None, *, on_cpu: bool = False
) -> Iterator[Notice]:
    """Warn of a run that is too short, and suggest options.

    Args:
        seconds: the seconds per step, with chores, if they decided the number of steps.
        on_cpu: whether the run computes on the CPU, which other programs may keep busy.
    """
    min_steps = fewest_steps(config)
    if config.num_steps >= min_steps or config.init:
        return
    noisy = config.num_steps < min_steps / 2
    verb = "is" if config.num_steps == 1 else "are"
    says = "too few: samples will be noise" if noisy else "few: samples will be rough"
    fix = (
        _suggest_options(config, seconds, config.num_steps / min_steps)
        if seconds
        else f"--steps {min_steps}"
    )
    busy = seconds and on_cpu and _cpu_is_busy()
    hint = " Other programs keep the CPU busy: OMP_NUM_THREADS=1 may make steps faster."
    text = f"{plural(config.num_steps, 'step')} {verb} {says}. Try {fix}.{hint if busy else ''}"
    yield Notice(text, warning=True)


def warn_of_few_minutes(
    plan: Plan, budget: Budget, steps: int, *, on_cpu: bool = False
) -> Iterator[Notice]:
    """Warn of --minutes whose steps are too few, and suggest more."""
    min_steps = fewest_steps(plan.config)
    whole = replace(budget, minutes=math.inf)  # which leaves time for all chores
    seconds = whole.estimate_seconds(0, min_steps, plan_chores(plan)) / min_steps
    yield from warn_of_few_steps(replace(plan.config, steps=steps), seconds, on_cpu=on_cpu)


def report_decision(
    plan: Plan, trainer: Trainer, budget: Budget, before: int, *, first: bool
) -> Iterator[Notice]:
    """Report a number of steps that --minutes decided, and warn of too few the first time.

    Args:
        before: the number of steps that was planned before.
    """
    steps = trainer.progress.steps
    if first:
        size = plural(trainer.batch_size, "image")
        yield Notice(f"{budget.pace:.3g} s per step of {size}: {plural(steps, 'step')}")
        if before > FIRST:  # if not, the start has warned
            on_cpu = trainer.device.type == "cpu"
            yield from warn_of_few_minutes(plan, budget, steps, on_cpu=on_cpu)
    elif steps != before:
        yield Notice(f"{steps:,} steps instead of {before:,}, to end in time")


def _cpu_is_busy() -> bool:
    """Whether more programs compute than there are cores, and the number of threads is not set."""
    if torch.get_num_threads() == 1 or THREAD_VARIABLES & os.environ.keys():
        return False
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    except (AttributeError, OSError):  # Windows has no load average
        return False


def warn_of_long_run(config: TrainConfig, seconds: float, steps_left: int) -> Iterator[Notice]:
    """Warn of a run whose `steps_left` steps take more than a day, and suggest options."""
    total = steps_left * seconds
    if total > DAY:
        yield Notice(
            f"{plural(steps_left, 'step')} of {seconds:.3g} s take {format_duration(total)}. "
            f"Try {_suggest_options(config, seconds, DAY / total)}.",
            warning=True,
        )


def _suggest_options(config: TrainConfig, seconds: float, ratio: float) -> str:
    """Suggest options that make a step at least 1/`ratio` times as fast.

    The suggestion ends with the --minutes of the shortest useful run, in two digits, if these are
    less than a day or if there is no other way.
    """
    ways = []
    free = not (config.init or config.resumes)  # to choose another network and size
    if free and config.preset not in (None, "tiny", "slim"):
        ways.append("--preset tiny")
    elif free and config.size and (side := _find_smaller(config, ratio)):
        ways.append(f"--size {side}")
    min_seconds = fewest_steps(config) * seconds
    if min_seconds < DAY or not ways:
        unit = 10.0 ** (math.floor(math.log10(min_seconds / 60)) - 1)
        ways.append(f"--minutes {math.ceil(round(min_seconds / 60 / unit, 6)) * unit:g}")
    return ", or ".join(ways)


def _find_smaller(config: TrainConfig, ratio: float) -> int:
    """Return the --size whose steps cost at most `ratio` times as much, 0 if it is too small.

    Positions cost time, and a position is a patch. From a number of positions on, a preset has
    patches.
    """
    assert config.size is not None
    patch = config.architecture.get("patch", 1)
    side = smaller_side([length // patch for length in config.size], ratio)
    finest = find_preset(config.preset).resolve_settings(len(config.size)).get("finest") or 0
    return side * patch if side >= finest else side


class Forecast:
    """Forecast of the remaining time, made once after `SLOW` seconds of steps."""

    def __init__(self, config: TrainConfig, start: int, end: int) -> None:
        self.config, self.end, self._first, self._from = config, end, start + 1, start
        self._began, self._reported = time.monotonic(), False

    def report(self, step: int) -> Iterator[Notice]:
        """Yield the forecast when it is due. To be called after every step.

        The first step counts only if it is slow, because it chooses kernels or compiles.
        """
        now, steps_left = time.monotonic(), self.end - step
        slow = now - self._began > SLOW and not (self.config.compile and step == self._first)
        if slow and not self._reported:
            self._reported = True
            seconds = (now - self._began) / (step - self._from)
            seconds_left = steps_left * seconds
            first, every = self._first - 1, self.config.log_every
            if step // every == first // every and seconds_left > MINUTE:
                yield Notice(f"{seconds:.3g} s per step: {format_duration(seconds_left)} left")
            yield from warn_of_long_run(self.config, seconds, steps_left)
        elif step == self._first:
            self._from, self._began = step, now
