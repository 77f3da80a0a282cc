"""What a training would cost, for `--dry-run`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from diffuse_cli.config import TrainConfig
from diffuse_cli.config.options import to_toml
from diffuse_cli.config.train_options import to_file
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.system.devices import machine
from diffuse_cli.system.events import Work
from diffuse_cli.training.memory_estimate import SLACK, cost, images_at_a_time
from diffuse_cli.training.monitor import chores
from diffuse_cli.training.plan import check_batch, prepare, settled
from diffuse_cli.training.time_estimate import (
    cut_short,
    duration,
    fill_minutes,
    parted,
    seconds_a_step,
    seconds_in_all,
    too_few,
    too_long,
)


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
