"""What a training would cost, without training: for `--dry-run`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from diffuse_cli.config import TrainConfig
from diffuse_cli.config.training import to_file
from diffuse_cli.core.kernels.layout import laid_out, lay_out
from diffuse_cli.core.networks import Run, count_parameters
from diffuse_cli.diffusion import Blueprint
from diffuse_cli.events import Notice, Work
from diffuse_cli.options import to_toml
from diffuse_cli.runtime import machine, resolve_precision
from diffuse_cli.training.power import KEPT_LENGTHS
from diffuse_cli.training.preparing import Plan, check_batch, prepare
from diffuse_cli.training.timing import cut_short, fill_minutes, seconds_a_step

COPIES = 5
"""Weights, gradients, two moments and the average, in float32; --ema-lengths keeps more."""


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
        minutes = self.seconds / 60
        time = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
        return (
            f"# {self.parameters:,} parameters, about {self.memory / 2**30:.2f} GiB, "
            f"about {time} on this machine\n\n{to_toml(to_file(self.config, control=False))}"
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
        if plan.config.minutes is not None:
            done, seconds = fill_minutes(plan, accelerator)
            plan = dataclasses.replace(plan, config=done)
        else:
            seconds = seconds_a_step(plan, accelerator)
    done = plan.config
    yield from cut_short(done)
    with torch.device("meta"):
        parameters = count_parameters(plan.blueprint.build())
    return Estimate(done, parameters, _memory(plan, parameters), seconds * done.steps)


def _memory(plan: Plan, parameters: int) -> int:
    """Bytes of the weights' copies, and of what a forward pass leaves for the backward pass."""
    config = plan.config
    one, two = (
        bytes_kept(
            plan.blueprint,
            batch,
            half=config.precision != "fp32",
            checkpointing=config.gradient_checkpointing,
        )
        for batch in (1, 2)
    )
    assert config.batch_size is not None
    batch = -(-config.batch_size // config.accumulation)
    copies = COPIES + (len(KEPT_LENGTHS) if config.ema_lengths else 0)
    return copies * 4 * parameters + one + (two - one) * (batch - 1)


def bytes_kept(blueprint: Blueprint, batch: int, *, half: bool, checkpointing: bool) -> int:
    """Bytes that a network keeps for the backward pass of a batch, beside its weights.

    With `checkpointing` they are the inputs of its blocks, and all that the largest block keeps
    while it runs again.
    """
    net = lay_out(blueprint.build())
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # so that no other storage takes its place
        return tensor

    def keep_inputs(block: Run, *inputs: object) -> torch.Tensor:
        nonlocal largest
        for tensor in inputs:
            if isinstance(tensor, torch.Tensor):
                keep(tensor)
        before = dict(kept)
        h = block(*inputs)
        largest = max(largest, sum(kept.values()) - sum(before.values()))
        kept.clear()
        kept.update(before)
        return h

    if checkpointing:
        net.run_block = keep_inputs  # type: ignore[assignment]
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        net(laid_out(torch.zeros(batch, *blueprint.space.shape)), torch.zeros(batch))
    return sum(kept.values()) + largest
