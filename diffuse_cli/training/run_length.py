"""Length of a run: how many steps it takes, and warnings if that is too short or takes days."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from accelerate import Accelerator

from diffuse_cli.config.options import read_toml
from diffuse_cli.config.presets import find_preset
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.system import Notice, UsageError, Work, format_duration, plural
from diffuse_cli.system.events import DAY
from diffuse_cli.training import step_cost, time_budget
from diffuse_cli.training.chores import plan_chores
from diffuse_cli.training.optimization import ProgressSchedule, warmup_of
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.run_directory import Checkpoint, RunDirectory
from diffuse_cli.training.time_budget import Budget
from diffuse_cli.training.trainer import Trainer

FEWEST = 300
"""Steps of `SMALLEST` images after which samples are as good as blurred images by KID. After half
of them they are hardly better than noise (benchmarks/README.md)."""

MINUTE, SLOW = 60, 10
"""Seconds of a run that deserves a forecast, and of the steps it is based on."""

THREAD_VARIABLES = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
"""Environment variables by which users set the number of threads."""


def check_steps(config: TrainConfig, step: int) -> None:
    """Refuse --steps below the number of steps that a run has taken.

    Raises:
        UsageError: it is less.
    """
    if config.minutes is None and config.num_steps < step:
        message = f"--steps {config.num_steps} is less than the {step} steps already taken"
        raise UsageError(message, "Set a larger --steps", code="run_finished")


def start_progress(
    plan: Plan,
    accelerator: Accelerator,
    run: RunDirectory,
    checkpoint: Checkpoint | None,
    spent: float,
) -> Work[tuple[ProgressSchedule, Budget | None]]:
    """Start or resume the progress of a run, and the time budget of --minutes.

    Args:
        spent: seconds of --minutes that have passed.

    Raises:
        UsageError: a resumed run has taken more steps than asked for, or has used the minutes.
    """
    config, step = plan.config, checkpoint.step if checkpoint else 0
    check_steps(config, step)
    progress, budget = ProgressSchedule.of(config.num_steps), None
    if config.minutes is not None and checkpoint and "budget" in checkpoint.state:
        budget = Budget(**checkpoint.state["budget"])
        budget.count(spent)
        if config.minutes == budget.minutes:
            yield _describe_budget(budget)
            return ProgressSchedule(**checkpoint.state["course"]), budget
        used = budget.used / 60
        if used >= config.minutes:
            raise UsageError(
                f"--minutes {config.minutes:g} is the total of the run, and {used:.3g} minutes "
                "have passed",
                f"To train for {config.minutes:g} more, set --minutes {used + config.minutes:.3g}",
                code="run_finished",
            )
        progress = ProgressSchedule.of(budget.extend(config.minutes, step, plan_chores(plan)))
        yield _describe_budget(budget)
    elif config.minutes is not None:
        sizes = config.images_per_step, accelerator.num_processes
        pace = step_cost.predict_seconds(config, plan.blueprint, *sizes)
        budget = Budget(config.minutes, pace, used=spent)
        if step:
            text = "count from now, because the run used --steps before"
            yield Notice(f"--minutes {config.minutes:g} {text}")
            progress = ProgressSchedule.of(budget.fill(step, plan_chores(plan), time_budget.FIRST))
    if step and run.exists():
        before = read_toml(run.config).get("steps")
        if before != progress.steps:
            yield Notice(
                f"{progress.steps:,} steps instead of {before:,}: the learning rate follows the "
                "new schedule"
            )
    if budget is None and not step:
        yield from warn_of_few_steps(config)
    elif budget and not step and progress.steps <= time_budget.FIRST:  # a step may take hours
        steps, on_cpu = budget.fill(0, plan_chores(plan)), accelerator.device.type == "cpu"
        yield from warn_of_few_minutes(plan, budget, steps, on_cpu=on_cpu)
    yield from warn_of_limited_options(replace(config, steps=progress.steps))
    return progress, budget


def _describe_budget(budget: Budget) -> Notice:
    """Return a notice of the minutes that are left of a resumed run."""
    used, remaining = budget.used / 60, max(0.0, budget.seconds_left / 60)
    total = f"--minutes {budget.minutes:g} is the total of the run"
    return Notice(f"{total}: {used:.3g} are used, {remaining:.3g} are left")


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
    return math.ceil(FEWEST * math.cbrt(time_budget.SMALLEST / config.images_per_step))


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


def report_decision(trainer: Trainer, budget: Budget, before: int, first: bool) -> Iterator[Notice]:
    """Report a number of steps that --minutes decided, and warn of too few the first time.

    Args:
        before: the number of steps that was planned before.
        first: whether it is the first decision.
    """
    steps = trainer.progress.steps
    if first:
        size = plural(trainer.batch_size, "image")
        yield Notice(f"{budget.pace:.3g} s per step of {size}: {plural(steps, 'step')}")
        if before > time_budget.FIRST:  # if not, the start has warned
            on_cpu = trainer.device.type == "cpu"
            yield from warn_of_few_minutes(trainer.plan, budget, steps, on_cpu=on_cpu)
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
    side = step_cost.smaller_side([length // patch for length in config.size], ratio)
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
