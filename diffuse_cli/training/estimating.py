"""What a training would cost, without training: for `--dry-run`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.unet import UNet, count_parameters
from diffuse_cli.events import Notice, Work
from diffuse_cli.options import to_dict, to_toml
from diffuse_cli.runtime import machine, resolve_precision
from diffuse_cli.training.preparing import Plan, check_batch, prepare
from diffuse_cli.training.timing import seconds_a_step, steps_for

COPIES = 5
"""Weights, gradients, two moments and the average, in float32."""


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
            "config": to_dict(self.config, control=False),
            "parameters": self.parameters,
            "memory_bytes": self.memory,
            "seconds": round(self.seconds, 1),
        }

    def to_toml(self) -> str:
        """The configuration as TOML, with the costs as comments."""
        minutes = self.seconds / 60
        time = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
        return (
            f"# {self.parameters:,} parameters, about {self.memory / 2**30:.2f} GiB, "
            f"about {time} on this machine\n\n{to_toml(self.config)}"
        )


def estimate(config: TrainConfig) -> Work[Estimate]:
    """Read the data, complete the configuration, and time a few steps that are thrown away.

    Raises:
        DiffuseError: what training itself would raise before its first step.
    """
    with machine(
        resolve_precision(config.precision), accumulation=config.accumulation
    ) as accelerator:
        check_batch(config, accelerator.num_processes)
        plan = yield from prepare(config)
        yield Notice("measuring the time of a step")
        seconds = seconds_a_step(plan, accelerator)
    done = plan.config
    if done.minutes is not None:
        done = dataclasses.replace(done, steps=steps_for(done.minutes, seconds), minutes=None)
    with torch.device("meta"):
        parameters = count_parameters(UNet(plan.unet))
    return Estimate(done, parameters, _memory(plan, parameters), seconds * done.steps)


def _memory(plan: Plan, parameters: int) -> int:
    """Bytes of the weights' copies, and of what one image leaves for the backward pass."""
    config = plan.config
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor.numel() * tensor.element_size()
        return tensor

    net = UNet(plan.unet)
    x = torch.zeros(1, plan.unet.channels, *plan.unet.size)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "fp32"),
    ):
        net(x, torch.zeros(1))
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    activations = sum(size for storage, size in kept.items() if storage not in own)
    batch = -(-config.batch_size // config.accumulation)
    return COPIES * 4 * parameters + activations * batch
