"""Estimate the memory of a run before anything is allocated, and split batches to fit it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import dimensions
from diffuse_cli.core.distillation import POINTS
from diffuse_cli.models.activation_memory import SLACK, MemoryCost, count_kept_bytes
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import Notice, UsageError, Work
from diffuse_cli.system.memory import format_bytes, free_memory_of_process
from diffuse_cli.training.ema_weights import KEPT_LENGTHS

COPIES = 5
"""Copies of the weights in float32: weights, gradients, two moments and the average.
--ema-lengths adds more."""

CRITICS = 5
"""Additional copies for distillation: the teacher's weights, and a critic's weights, gradients and
moments."""


def estimate_memory(
    config: TrainConfig, blueprint: Blueprint, device: str, processes: int = 1
) -> MemoryCost:
    """Estimate the memory of a complete configuration on a device."""
    parameters = sum(map(math.prod, blueprint.shapes.values()))
    half, again = config.precision != "fp32", config.gradient_checkpointing
    activations = count_kept_bytes(blueprint, half, again, device)
    copies = COPIES + (len(KEPT_LENGTHS) if config.ema_lengths else 0)
    copies += processes > 1  # the gradients on their way to the others
    if config.distills:
        copies += CRITICS
    points = POINTS if config.distills else 1
    return MemoryCost(copies * 4 * parameters + activations.fixed, points * activations.image)


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
    device = accelerator.device.type
    free = free_memory_of_process(device)
    needs = estimate_memory(saving, blueprint, device, accelerator.num_processes)
    raise UsageError(
        f"one image of {dimensions(blueprint.space.size)} takes "
        f"{format_bytes(needs.total_bytes(1))} of memory in training, and {format_bytes(free)} are "
        "free",
        f"Try {_suggest_smaller(needs, blueprint, free)}",
    )


def count_fitting_images(
    config: TrainConfig, blueprint: Blueprint, accelerator: Accelerator
) -> int:
    """Return the number of images per part that every process has memory for."""
    device = accelerator.device.type
    free = free_memory_of_process(device)
    needs = estimate_memory(config, blueprint, device, accelerator.num_processes)
    images = max(0, (free - needs.fixed) // max(1, int(needs.image * SLACK.get(device, 1.0))))
    if images == 0 and needs.total_bytes(1) <= free:
        images = 1  # it may just fit
    return int(min(gather_object([images])))


def split_batch(config: TrainConfig, images: int, processes: int) -> TrainConfig:
    """Return `config` with its batch in parts of at most `images` images per process."""
    assert config.batch_size is not None
    share = -(-config.batch_size // processes)
    parts = min(-(-share // images), config.batch_size // processes)
    return dataclasses.replace(config, accumulation=max(config.accumulation, parts))


def fit_into_memory(config: TrainConfig, room: int, processes: int) -> Work[TrainConfig]:
    """Return `config` in parts of at most `room` images, with a warning if that changes it."""
    fitted = split_batch(config, room, processes)
    if fitted.accumulation != config.accumulation:
        yield Notice(
            f"a batch of {fitted.batch_size} images does not fit into memory at once: it is "
            f"computed in {fitted.accumulation} parts (--accumulation {fitted.accumulation})",
            warning=True,
        )
    return fitted


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
    max_side = int(min(size) * ratio ** (1 / len(size)))
    unit = 2 ** max(4, math.ceil(math.log2(max(1, max_side) / 8)))
    side = max_side // unit * unit
    return side if 16 <= side < min(size) else 0
