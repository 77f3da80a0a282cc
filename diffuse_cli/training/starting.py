"""Where a run starts: the checkpoint that it goes on from, and the steps that it will take."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import NamedTuple

from accelerate import Accelerator

from diffuse_cli.config import TrainConfig
from diffuse_cli.config.options import options, place_name, read_toml, to_toml
from diffuse_cli.config.train_options import to_file
from diffuse_cli.system import files
from diffuse_cli.system.devices import aside
from diffuse_cli.system.errors import OutputError, UsageError
from diffuse_cli.system.events import Notice, Stop, Work, until
from diffuse_cli.training.initial_weights import first_weights
from diffuse_cli.training.monitor import chores
from diffuse_cli.training.optimization import Course
from diffuse_cli.training.plan import Plan, check_fingerprint
from diffuse_cli.training.run_directory import Checkpoint, RunDirectory
from diffuse_cli.training.threads import go_on_with
from diffuse_cli.training.time_budget import Budget
from diffuse_cli.training.time_estimate import (
    cut_short,
    fill_minutes,
    parted,
    seconds_in_all,
    too_few,
)


class Start(NamedTuple):
    """How a run begins, or goes on.

    Attributes:
        config: with the number of steps.
        course: the way to the last of them.
        budget: the time that it may take, of a run by --minutes.
    """

    config: TrainConfig
    course: Course
    budget: Budget | None = None


def last_checkpoint(plan: Plan, run: RunDirectory) -> Work[Checkpoint | None]:
    """The checkpoint to go on from, or None; tells the user which.

    Raises:
        OutputError: there is a model, and nothing that leads to it.
        UsageError: more steps are done than are asked for.
    """
    config = plan.config
    if not config.goes_on:
        return None
    checkpoint, passed = run.load()
    for text in passed:
        yield Notice(text, warning=True)
    if checkpoint is None:
        if run.model.exists():
            raise OutputError(
                f"{files.show(run.model)} exists, but {files.show(run.path)} has no "
                "complete checkpoint",
                f"Start from its weights: --init {files.show(run.model)} -o another.safetensors",
            )
        yield Notice(f"no complete checkpoint in {files.show(run.path)}: starting at step 0")
        return None
    yield from check_fingerprint(plan, checkpoint.state)
    yield Notice(f"resuming from step {checkpoint.step:,} of {files.show(run.path)}")
    if config.minutes is None and config.steps < checkpoint.step:
        raise UsageError(f"--steps {config.steps}: step {checkpoint.step} is done already")
    return checkpoint


def with_first_weights(plan: Plan) -> Work[Plan]:
    """A plan that should have gone on, and has nothing to go on from."""
    return replace(plan, init=(yield from first_weights(plan.config, plan.blueprint)))


def started(
    plan: Plan,
    accelerator: Accelerator,
    run: RunDirectory,
    checkpoint: Checkpoint | None,
    stop: Stop,
    room: int,
    spent: float,
) -> Work[Start]:
    """The steps of a run: those of the configuration, or those that fill its minutes.

    Args:
        room: most images at a time.
        spent: seconds of --minutes that are over.
    """
    done = checkpoint.step if checkpoint else 0
    seconds, budget = None, _saved_budget(plan.config, checkpoint)
    if budget:
        go_on_with(budget.threads, accelerator)
    if checkpoint and budget and plan.config.minutes == budget.minutes:
        course = Course(**checkpoint.state["course"])
        config = replace(plan.config, steps=course.steps, minutes=None)
        config = yield from parted(config, room, accelerator.num_processes)
        yield _clock(budget := budget.spent(spent), done < course.steps)
        return Start(config, course, budget)
    config = plan.config
    if budget and config.minutes is not None:
        budget = _changed(budget.spent(spent), config.minutes)
        yield _clock(budget)
        budget, steps = budget.plan(done, chores(plan))
        config = replace(config, steps=steps, minutes=None)
    elif config.minutes is not None:
        if done:
            yield Notice(f"--minutes {config.minutes:g} starts now: the run began with --steps")
        measuring = fill_minutes(plan, accelerator, room, spent)
        config, budget = yield from until(stop, measuring)
        seconds = seconds_in_all(replace(plan, config=config), budget)
        config = replace(config, steps=done + config.steps)
        yield Notice(
            f"{budget.step:.3g} s a step of {config.batch_size} images: {config.steps:,} steps"
        )
    config = yield from parted(config, room, accelerator.num_processes)
    if done and run.exists():
        before = read_toml(run.config).get("steps")
        if before != config.steps:
            yield Notice(
                f"{before:,} steps become {config.steps:,}: the learning rate follows the "
                "new schedule"
            )
    yield from cut_short(config)
    if not done:
        yield from too_few(config, seconds)
    return Start(config, Course.of(config.steps), budget)


def _saved_budget(config: TrainConfig, checkpoint: Checkpoint | None) -> Budget | None:
    """The time that a run by --minutes had left at a checkpoint; None if it goes on by steps, or
    began by them."""
    values = checkpoint.state.get("budget") if checkpoint and config.minutes is not None else None
    return Budget.read(values) if values else None


def _clock(budget: Budget, goes_on: bool = True) -> Notice:
    """The minutes of a resumed run: they are those of the whole run."""
    total = f"--minutes {budget.minutes:g} is the total of the run"
    if not goes_on:
        more = f"resume with --minutes {2 * budget.minutes:g}"
        return Notice(f"{total}, which is finished. For {budget.minutes:g} more, {more}")
    left = max(0.0, budget.left / 60)
    return Notice(f"{total}: {budget.used / 60:.3g} are used, {left:.3g} are left")


def _changed(budget: Budget, minutes: float) -> Budget:
    """A budget of other minutes in all.

    Raises:
        UsageError: they are over.
    """
    changed = replace(budget, minutes=minutes)
    if changed.left <= 0:
        used = budget.used / 60
        raise UsageError(
            f"--minutes {minutes:g} is the total of the run, and {used:.3g} are used already",
            f"For {minutes:g} more, set --minutes {used + minutes:.3g}",
        )
    return changed


def write_config(run: RunDirectory, config: TrainConfig, budget: Budget | None = None) -> None:
    """Write config.toml; with the minutes, as long as they may change the number of steps."""
    values = to_file(config, control=False)
    if budget:
        values["minutes"] = budget.minutes
    files.write_text(run.config, to_toml(values))


def begin_trackers(config: TrainConfig, accelerator: Accelerator, run: RunDirectory) -> Work[None]:
    """Give the trackers of --log the configuration, with only the names of places; say how to
    look."""
    if config.log:
        values = {
            f.name: place_name(value) if spec.place and isinstance(value, str) else value
            for f, spec in options(config)
            if isinstance(value := getattr(config, f.name), (int, float, str))
        }
        with aside():
            accelerator.init_trackers("diffuse", config=values)
    if config.log == "tensorboard":
        look = shlex.join(["tensorboard", "--logdir", files.show(run.logs)])
        yield Notice(f"See the run in a browser: {look}")
