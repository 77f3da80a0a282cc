"""The memory that a run needs, counted before anything is allocated, and what the machine has."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from diffuse_cli import memory
from diffuse_cli.config import TrainConfig
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.consistency import POINTS
from diffuse_cli.core.kernels.layout import laid_out, memory_format
from diffuse_cli.core.losses import TAUGHT
from diffuse_cli.core.networks import Run, plainly
from diffuse_cli.core.settings import Settings, dimensions
from diffuse_cli.core.space import Space
from diffuse_cli.diffusion import Blueprint, build
from diffuse_cli.errors import UsageError
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.power import KEPT_LENGTHS

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

_Built = tuple[str, Settings, Space, Conditions, int]
"""What a network is built of."""

COPIES = 5
"""Weights, gradients, two moments and the average, in float32; --ema-lengths keeps more."""

CRITICS = 5
"""More of them where a model is distilled: the teacher's weights, and a critic's with its gradients
and moments."""

SLACK = {"cpu": 2.2}
"""Peak memory of a step over what is kept for the backward pass: 1.2 to 2.1 measured on processors,
where a system that runs out kills the process. Elsewhere running out is an error, and the part is
halved then."""


@dataclass(frozen=True)
class Cost:
    """Bytes of a training: for weights and their copies, and for each image of a part."""

    fixed: int
    image: int

    def of(self, images: int, slack: float = 1.0) -> int:
        """Bytes of a step with parts of `images` images."""
        return self.fixed + int(images * self.image * slack)


def cost(config: TrainConfig, blueprint: Blueprint, device: str, processes: int = 1) -> Cost:
    """What a complete configuration costs on a device."""
    parameters = sum(map(math.prod, blueprint.shapes.values()))
    half, again = config.precision != "fp32", config.gradient_checkpointing
    points = POINTS if config.loss in TAUGHT else 1
    one, two = (bytes_kept(blueprint, n * points, half, again, device) for n in (1, 2))
    copies = COPIES + (len(KEPT_LENGTHS) if config.ema_lengths else 0)
    copies += processes > 1  # the gradients on their way to the others
    if config.loss in TAUGHT:
        copies += CRITICS
    return Cost(copies * 4 * parameters + one - (two - one), two - one)


def bytes_kept(
    blueprint: Blueprint, batch: int, half: bool, checkpointing: bool, device: str = "cpu"
) -> int:
    """Bytes that a network keeps for the backward pass of a batch, besides its weights.

    With `checkpointing`: the inputs of its blocks, and what the largest block keeps while it runs
    again. Counted with fake tensors, which take no memory.
    """
    of = blueprint
    network = of.network, of.config, of.space, of.conditions, of.out_channels
    return _bytes_kept(network, batch, half, checkpointing, device)


@functools.cache
def _bytes_kept(network: _Built, batch: int, half: bool, checkpointing: bool, device: str) -> int:
    _, _, space, conditions, _ = network
    mode, net = _without_memory(network, device)
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

    net.run_block = keep_inputs if checkpointing else plainly  # type: ignore[assignment]
    with (
        mode,
        torch.device(device),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast(device, torch.bfloat16, enabled=half),
    ):
        cond = conditions.told(torch.zeros(batch, dtype=torch.long))
        net(laid_out(torch.zeros(batch, *space.shape)), torch.zeros(batch), **cond)
    return sum(kept.values()) + largest


@functools.lru_cache(maxsize=1)
def _without_memory(network: _Built, device: str) -> tuple[FakeTensorMode, nn.Module]:
    """A network of fake tensors on a device, laid out as for training, and their mode."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with torch.device("meta"):  # in the mode, building takes four times as long
        net = build(*network)
    mode, target = FakeTensorMode(), torch.device(device)
    for module in net.modules():
        for held in (module._parameters, module._buffers):
            for name, t in held.items():
                if t is not None:  # as `lay_out` does it, which cannot with such tensors
                    meta = t.detach().to(memory_format=memory_format(device, t.ndim))
                    fake = FakeTensor(mode, meta, target).requires_grad_(t.requires_grad)
                    held[name] = fake  # type: ignore[assignment]
    return mode, net


def images_at_a_time(plan: Plan, accelerator: Accelerator) -> int:
    """How many images per part a process has memory for.

    Raises:
        UsageError: not even one, on any of the processes.
    """
    config, blueprint = plan.config, plan.blueprint
    device, processes = accelerator.device.type, accelerator.num_processes
    free = memory.free_memory(device)
    if device == "cpu":
        free //= memory.processes_here()
    needs = cost(config, blueprint, device, processes)
    images = max(0, (free - needs.fixed) // max(1, int(needs.image * SLACK.get(device, 1.0))))
    if images == 0 and needs.of(1) <= free:
        images = 1  # it may just fit
    images = int(min(gather_object([images])))
    if images == 0:
        raise UsageError(
            f"one image of {dimensions(blueprint.space.size)} takes {_bytes(needs.of(1))} of "
            f"memory in training, and {_bytes(free)} are free",
            f"Try {_smaller(plan, device, free)}",
        )
    return images


def split(config: TrainConfig, images: int, processes: int) -> TrainConfig:
    """`config` with its batch in parts of at most `images` images per process."""
    assert config.batch_size is not None
    share = -(-config.batch_size // processes)
    parts = min(-(-share // images), config.batch_size // processes)
    return dataclasses.replace(config, accumulation=max(config.accumulation, parts))


def _smaller(plan: Plan, device: str, free: int) -> str:
    """What to type for a run that fits."""
    config, blueprint = plan.config, plan.blueprint
    again = dataclasses.replace(config, gradient_checkpointing=True)
    if not config.gradient_checkpointing and cost(again, blueprint, device).of(1) <= free:
        return "--gradient-checkpointing"
    weights = cost(config, blueprint, device)
    if weights.fixed < free:
        ratio = (free - weights.fixed) / max(1, weights.image)
        if side := smaller_side(blueprint.space.size, ratio):
            return f"--size {side}, or a smaller --width"
    return "a smaller --size or --width, or --preset tiny"


def smaller_side(size: Sequence[int], ratio: float) -> int:
    """The --size whose images cost at most `ratio` times as much; 0 if they would be too small."""
    side = int(min(size) * ratio**0.5) // 16 * 16
    return side if 16 <= side < min(size) else 0


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 50 else f"{count / 2**20:,.1f} MiB"
