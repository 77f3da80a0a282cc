"""Estimate the cost of a training run, for `train --dry-run`."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.options import to_toml
from diffuse_cli.config.parsers import Size
from diffuse_cli.config.train_options import TrainConfig, to_file
from diffuse_cli.core import dimensions
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.media import MEDIA
from diffuse_cli.models.activation_memory import SLACK
from diffuse_cli.system import Progress, UsageError, Work, format_duration, plural
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.training import decisions, run_length, step_cost
from diffuse_cli.training.chores import plan_chores
from diffuse_cli.training.initial_weights import load_initial_weights
from diffuse_cli.training.plan import Plan, prepare_plan
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.time_budget import Budget
from diffuse_cli.training.trainer import Trainer

TASK = "measuring the time of a step"

QUICK, WARM_UP, ENOUGH = 3.0, 3, 8
"""Seconds that a measurement may take, first steps that do not count, and steps after which no more
are needed."""

EXPECTED = (
    (32, 32, 81_888, "10 minutes on one core"),
    (32, 64, 184_128, "1 hour on one core"),
    (64, 32, 150_368, "10 minutes on one core"),
    (64, 64, 165_440, "1 hour on one core"),
    (128, 32, 20_576, "10 minutes on one core"),
    (128, 32, 117_120, "1 hour on one core"),
    (128, 32, 1_556_288, "1 hour on two cores"),
    (256, 32, 31_360, "1 hour on one core"),
)
"""Runs of docs/expect.md: the side, the width of the network, the images seen and the time."""

SMALL = 64
"""Longest side of samples that `--dry-run` does not compare with half of the size."""


@dataclass(frozen=True)
class TrainingEstimate:
    """Complete configuration with its cost.

    Attributes:
        parameters: the parameters of the network.
        memory: the bytes of weights, optimizer state and activations, without the program.
        seconds: the time of the steps that are left.
        samples: the training samples.
        half: half of the size, and the samples that its network sees in the same time, or None.
        step: the step that a continued run starts from.
    """

    config: TrainConfig
    parameters: int
    memory: int
    seconds: float
    samples: int
    half: tuple[Size, int] | None
    step: int = 0

    @property
    def images_seen(self) -> int:
        """Samples that the run still sees, each time they are seen."""
        return (self.config.num_steps - self.step) * self.config.images_per_step

    def describe_expectation(self) -> str:
        """Return the run of docs/expect.md that is most like this one, if it is of color images."""
        config, side = self.config, max(self.config.size or (1,))
        if config.medium != "image" or config.channels != 3 or config.given:
            return ""

        cost = max(1, self.images_seen) * (config.width or 1) ** 2  # about, in operations

        def distance(run: tuple[int, int, int, str]) -> tuple[float, float]:
            size, width, images, _ = run
            return abs(math.log(size / side)), abs(math.log(images * width**2 / cost))

        size, _, images, words = min(EXPECTED, key=distance)
        many = f"of {size}x{size} after {images:,} images ({words})"
        return f"The most similar run in docs/expect.md has samples {many}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "config": to_file(self.config, control=False),
            "parameters": self.parameters,
            "memory_bytes": self.memory,
            "seconds": round(self.seconds, 1),
            "images_seen": self.images_seen,
            "epochs": round(self.images_seen / self.samples, 3),
            "half_size": self.half and {"size": self.half[0], "images_seen": self.half[1]},
        }

    def to_toml(self) -> str:
        """Return the configuration as TOML, with the costs as comments."""
        costs = (
            f"# {self.parameters:,} parameters, about {self.memory / 2**30:.2f} GiB of tensors, "
            f"about {format_duration(self.seconds)} on this machine"
        )
        medium, times = MEDIA[str(self.config.medium)], _round(self.images_seen / self.samples)
        comment = (
            f"# {dimensions(self.config.size or ())}: {_round(self.images_seen)} {medium.many} in "
            f"{format_duration(self.seconds)}, each of "
            f"{plural(self.samples, medium.one, medium.many)} {times} "
            f"{'time' if times == '1' else 'times'}"
        )
        if self.half:
            comment += f". At {dimensions(self.half[0])} with this width: {_round(self.half[1])}"
        return f"{costs}\n{comment}\n\n{to_toml(to_file(self.config, control=False))}"


def _round(count: float) -> str:
    """Return a count with three digits."""
    return f"{float(f'{count:.3g}'):,.15g}"


def count_at_half_size(config: TrainConfig, plan: Plan) -> tuple[Size, int] | None:
    """Return half of the size, and the samples that its network sees in the time of the plan.

    The network has the plan's width. Returns None for signals, small samples, or a size that the
    network does not suit.

    Args:
        config: the configuration as it was set, without the plan's network.
    """
    space = plan.blueprint.space
    half = tuple(side // 2 for side in space.size)
    if space.dims == 1 or max(space.size) <= SMALL or min(half) == 0:
        return None
    try:
        smaller = dataclasses.replace(space, size=half)
        config = dataclasses.replace(config, size=half)
        half_config, blueprint = decisions.complete_config(
            config, smaller, plan.blueprint.conditions
        )
    except UsageError:
        return None
    if half_config.width != plan.config.width:  # a GPU has another preset at small sizes
        return None
    ratio = step_cost.count_operations(plan.blueprint) / step_cost.count_operations(blueprint)
    return half, int(plan.config.num_steps * plan.config.images_per_step * ratio)


def measure_step_seconds(plan: Plan, accelerator: Accelerator) -> Work[float]:
    """Measure the time of a step on a temporary network, on the slowest process.

    A step that would take longer than QUICK seconds is predicted without building the network.
    """
    images, processes = plan.config.images_per_step, accelerator.num_processes
    predicted = step_cost.predict_seconds(plan.config, plan.blueprint, images, processes)
    if predicted > QUICK:
        return predicted
    trainer, times = Trainer(plan, accelerator), list[float]()
    # The first step chooses kernels or compiles.
    while len(times) < WARM_UP + ENOUGH and sum(times[1:]) < QUICK:
        yield Progress(TASK, len(times), WARM_UP + ENOUGH, plural(images, "image"))
        start = time.monotonic()
        trainer.step(len(times))
        trainer.wait()
        # Several processes must agree on the number of steps.
        times.append(float(max(gather_object([time.monotonic() - start]))))
    trainer.batches.close()
    accelerator.free_memory()
    yield Progress(TASK, WARM_UP + ENOUGH, WARM_UP + ENOUGH)
    return median(times[min(WARM_UP, len(times) - 1) :])


def estimate(config: TrainConfig) -> Work[TrainingEstimate]:
    """Read the data, complete the configuration, and time a few steps of a temporary network.

    A run that is continued is estimated from its newest checkpoint on.

    Raises:
        DiffuseError: any error that training would raise before its first step.
    """
    run = RunDirectory(config.out)
    with open_accelerator(
        config.precision, config.device, accumulation=config.accumulation
    ) as accelerator:
        plan = yield from prepare_plan(config, accelerator)
        newest = run.newest_step() if config.resumes and run.exists() else None
        if newest is None:
            yield from load_initial_weights(plan)
        # --minutes are those of the whole run.
        step = 0 if newest is None or config.minutes is not None else newest
        run_length.check_steps(plan.config, step)
        seconds = yield from measure_step_seconds(plan, accelerator)
        chores, run_config = plan_chores(plan), plan.config
        if config.minutes is None:
            budget = Budget(math.inf, seconds)
            if not step:
                yield from run_length.warn_of_few_steps(run_config)
        else:
            budget = Budget(config.minutes, seconds)
            run_config = dataclasses.replace(run_config, steps=budget.fill(0, chores))
            yield from run_length.warn_of_few_minutes(plan, budget, run_config.num_steps)
        total = budget.estimate_seconds(step, run_config.num_steps, chores)
        device, processes = accelerator.device.type, accelerator.num_processes
    yield from run_length.warn_of_limited_options(run_config)
    if config.minutes is None:
        yield from run_length.warn_of_long_run(run_config, seconds, run_config.num_steps - step)
    part = -(-run_config.images_per_step // (run_config.accumulation * processes))
    needs = step_cost.estimate_memory(run_config, plan.blueprint, device, processes)
    memory = needs.total_bytes(part, SLACK.get(device, 1.0))
    parameters = count_parameters(plan.blueprint.build_on_meta())
    half = None if step else count_at_half_size(config, plan)
    return TrainingEstimate(run_config, parameters, memory, total, len(plan.data.train), half, step)
