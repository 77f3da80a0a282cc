"""Estimate the memory of a run before anything is allocated, and split batches to fit it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.distillation import POINTS
from diffuse_cli.core.kernels import arrange_memory
from diffuse_cli.core.losses import TAUGHT
from diffuse_cli.core.networks import Run
from diffuse_cli.core.settings import dimensions
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import memory
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training.ema_weights import KEPT_LENGTHS

COPIES = 5
"""Copies of the weights in float32: weights, gradients, two moments and the average.
--ema-lengths adds more."""

CRITICS = 5
"""Additional copies for distillation: the teacher's weights, and a critic's weights, gradients and
moments."""

SLACK = {"cpu": 1.7}
"""Peak memory of a step over the memory kept for the backward pass: 1.2 to 2.0 measured on CPUs
(benchmarks/memory.py), where a system that runs out of memory kills the process. On other devices
running out of memory is an error, and the part is halved then."""


@dataclass(frozen=True)
class MemoryCost:
    """Bytes of a training run: for weights and their copies, and for each image of a part."""

    fixed: int
    image: int

    def total_bytes(self, images: int, slack: float = 1.0) -> int:
        """Return the bytes of a step with parts of `images` images."""
        return self.fixed + int(images * self.image * slack)


def estimate_memory(
    config: TrainConfig, blueprint: Blueprint, device: str, processes: int = 1
) -> MemoryCost:
    """Estimate the memory of a complete configuration on a device."""
    parameters = sum(map(math.prod, blueprint.shapes.values()))
    half, again = config.precision != "fp32", config.gradient_checkpointing
    kept = count_kept_bytes(blueprint, half, again, device)
    copies = COPIES + (len(KEPT_LENGTHS) if config.ema_lengths else 0)
    copies += processes > 1  # the gradients on their way to the others
    if config.loss in TAUGHT:
        copies += CRITICS
    points = POINTS if config.loss in TAUGHT else 1
    return MemoryCost(copies * 4 * parameters + kept.fixed, points * kept.image)


BATCH = 1009
"""Images of the counted batch. It is a large prime, so a storage whose size is a multiple of it is
kept for each image."""


@functools.lru_cache(maxsize=256)
def count_kept_bytes(
    blueprint: Blueprint, half: bool, checkpointing: bool, device: str = "cpu"
) -> MemoryCost:
    """Count the bytes that a network keeps for the backward pass, without its weights.

    With `checkpointing`, it keeps the inputs of its blocks, and the tensors of the largest block
    while that runs again. Fake tensors count the bytes without taking memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []
    largest = MemoryCost(0, 0)

    net = blueprint.build_on_meta()  # quickly built
    with FakeTensorMode(), torch.device(device):
        # `to_empty` and `arrange_weights` do not work with such tensors.
        for module in net.modules():
            for name, weight in module.named_parameters(recurse=False):
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(module, name, torch.nn.Parameter(arrange_memory(fake)))
            for name, values in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(values.shape, dtype=values.dtype))
        own = {p.untyped_storage()._cdata for p in net.parameters()}

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
            within = _split_sizes([kept[key] for key in kept.keys() - before.keys()])
            largest = max(largest, within, key=lambda cost: cost.total_bytes(BATCH))
            kept.clear()
            kept.update(before)
            return h

        if checkpointing:
            net.run_block = keep_inputs  # type: ignore[assignment]
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast(device, torch.bfloat16, enabled=half),
        ):
            cond = blueprint.conditions.make_keywords(torch.zeros(BATCH, dtype=torch.long))
            net(
                arrange_memory(torch.zeros(BATCH, *blueprint.input_space.shape)),
                torch.zeros(BATCH),
                **cond,
            )
    found = _split_sizes(kept.values())
    return MemoryCost(found.fixed + largest.fixed, found.image + largest.image)


def _split_sizes(sizes: Collection[int]) -> MemoryCost:
    """Divide the sizes of storages of `BATCH` images into fixed bytes and bytes per image."""
    images = sum(size for size in sizes if size % BATCH == 0)
    return MemoryCost(sum(sizes) - images, images // BATCH)


def find_room(
    config: TrainConfig, blueprint: Blueprint, accelerator: Accelerator
) -> Work[tuple[TrainConfig, int]]:
    """Return the configuration and the images per part that every process has memory for.

    If a single image does not fit, gradient checkpointing is turned on with a warning.

    Raises:
        UsageError: a process has no memory for a single image.
    """
    saving = dataclasses.replace(config, gradient_checkpointing=True)
    for tried in (config, saving):
        if images := count_fitting_images(tried, blueprint, accelerator):
            if tried != config:
                text = "an image does not fit into memory: activations are computed again in the "
                yield Notice(f"{text}backward pass (--gradient-checkpointing)", warning=True)
            return tried, images
    device, free = accelerator.device.type, _free_memory(accelerator)
    needs = estimate_memory(saving, blueprint, device, accelerator.num_processes)
    raise UsageError(
        f"one image of {dimensions(blueprint.space.size)} takes "
        f"{_bytes(needs.total_bytes(1))} of memory in training, and {_bytes(free)} are free",
        f"Try {_suggest_smaller(needs, blueprint, free)}",
    )


def count_fitting_images(
    config: TrainConfig, blueprint: Blueprint, accelerator: Accelerator
) -> int:
    """Return the number of images per part that every process has memory for."""
    device, free = accelerator.device.type, _free_memory(accelerator)
    needs = estimate_memory(config, blueprint, device, accelerator.num_processes)
    images = max(0, (free - needs.fixed) // max(1, int(needs.image * SLACK.get(device, 1.0))))
    if images == 0 and needs.total_bytes(1) <= free:
        images = 1  # it may just fit
    return int(min(gather_object([images])))


def _free_memory(accelerator: Accelerator) -> int:
    """Return the free bytes of this process's device, its share on a CPU."""
    device = accelerator.device.type
    free = memory.free_memory(device)
    return free // memory.count_local_processes() if device == "cpu" else free


def split_batch(config: TrainConfig, images: int, processes: int) -> TrainConfig:
    """Return `config` with its batch in parts of at most `images` images per process."""
    assert config.batch_size is not None
    share = -(-config.batch_size // processes)
    parts = min(-(-share // images), config.batch_size // processes)
    return dataclasses.replace(config, accumulation=max(config.accumulation, parts))


def fit_into_memory(config: TrainConfig, room: int, processes: int) -> Work[TrainConfig]:
    """Return `config` in parts of at most `room` images, with a warning if that changes it."""
    done = split_batch(config, room, processes)
    if done.accumulation != config.accumulation:
        yield Notice(
            f"a batch of {done.batch_size} images does not fit into memory at once: it is computed "
            f"in {done.accumulation} parts (--accumulation {done.accumulation})",
            warning=True,
        )
    return done


def _suggest_smaller(needs: MemoryCost, blueprint: Blueprint, free: int) -> str:
    """Suggest options of a run that fits."""
    if needs.fixed < free:
        ratio = (free - needs.fixed) / max(1, needs.image)
        patch = getattr(blueprint.config, "patch", 1)
        # A smaller size may have smaller patches, or none, but not more positions than pixels.
        if side := smaller_side([side // patch for side in blueprint.space.size], ratio):
            return f"--size {side}, or a smaller --width"
    return "a smaller --size or --width, or --preset tiny"


def smaller_side(size: Sequence[int], ratio: float) -> int:
    """Return the --size whose images cost at most `ratio` times as much. 0 if it is too small.

    Every preset suits the side, because it can be halved until 8 or less are left.
    """
    most = int(min(size) * ratio ** (1 / len(size)))
    unit = 2 ** max(4, math.ceil(math.log2(max(1, most) / 8)))
    side = most // unit * unit
    return side if 16 <= side < min(size) else 0


def _bytes(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 50 else f"{count / 2**20:,.1f} MiB"
