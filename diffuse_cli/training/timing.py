"""Seconds per step, measured on a network that is thrown away, and what follows from them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from statistics import median

from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config import TrainConfig
from diffuse_cli.events import Notice, Work
from diffuse_cli.training.configuring import BATCH, batched
from diffuse_cli.training.memory import split
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.trainer import Trainer, warmup_of

WARM_UP, SECONDS, LEAST = 3, 5.0, 5

ENOUGH, SMALLEST, TRIAL = 1536, 8, 16
"""Steps that a run has before its batch grows, the smallest batch, and that of the trial."""


def seconds_a_step(plan: Plan, accelerator: Accelerator) -> float:
    """The median time of a training step on the slowest process."""
    trainer = Trainer(plan, accelerator)
    for step in range(WARM_UP):
        trainer.step(step)
    began = time.monotonic()
    times: list[float] = []
    # Several processes must agree on the number of steps: they take the fewest.
    while len(times) < LEAST or (
        accelerator.num_processes == 1 and time.monotonic() - began < SECONDS
    ):
        start = time.monotonic()
        trainer.step(WARM_UP + len(times))
        trainer.wait()
        times.append(time.monotonic() - start)
    accelerator.free_memory()
    return float(max(gather_object([median(times)])))


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


def fill_minutes(plan: Plan, accelerator: Accelerator, room: int) -> tuple[TrainConfig, float]:
    """The configuration with the steps that fill its minutes, and the seconds per step.

    An open batch size is chosen to give a short run enough steps. At most `room` images are
    computed at a time.
    """
    processes = accelerator.num_processes
    config, minutes = plan.config, plan.config.minutes
    assert minutes is not None
    if config.batch_size is None:
        least = processes * config.accumulation
        size = max(TRIAL, least)
        trial = dataclasses.replace(plan, config=split(batched(config, size), room, processes))
        images = size * minutes * 60 / seconds_a_step(trial, accelerator)
        config = batched(config, batch_for(images, least))
    config = split(config, room, processes)
    seconds = seconds_a_step(dataclasses.replace(plan, config=config), accelerator)
    steps = max(1, round(minutes * 60 / seconds))
    return dataclasses.replace(config, steps=steps, minutes=None), seconds


def cut_short(config: TrainConfig) -> Iterator[Notice]:
    """Notices of options that the number of steps limits."""
    if config.warmup != TrainConfig.warmup and config.warmup > warmup_of(config):
        yield Notice(
            f"--warmup {config.warmup:,} is more than a tenth of {config.steps:,} steps: the "
            f"learning rate rises over {warmup_of(config):,}"
        )
    if config.stop_at is not None and config.stop_at > config.steps:  # of --minutes
        yield Notice(f"--stop-at {config.stop_at:,} is beyond the {config.steps:,} steps")


def batch_for(images: float, least: int = 1) -> int:
    """The batch size of a run that sees `images` images: the largest power of two that leaves it
    `ENOUGH` steps, from `SMALLEST` to `BATCH`.

    A short run learns by the number of its steps, a long one by their quality: after 30,000 images
    batches of 16 were level with 8 and ahead of 32, at 1,900, 3,000 and 1,000 steps
    (benchmarks/README.md).
    """
    fitting = [2**k for k in range(20) if SMALLEST <= 2**k <= min(BATCH, images / ENOUGH)]
    return max(fitting[-1] if fitting else SMALLEST, least)
