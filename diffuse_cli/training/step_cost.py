"""Predict the time and the memory of a training step, and split its batch to fit into memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.distillation import POINTS
from diffuse_cli.models.activation_memory import SLACK, MemoryCost, count_kept_bytes
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import Notice, UsageError, Work
from diffuse_cli.system.devices import device_type
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
    device = accelerator.device.type
    free = free_memory_of_process(device)
    for fitting in (config, dataclasses.replace(config, gradient_checkpointing=True)):
        needs = estimate_memory(fitting, blueprint, device, accelerator.num_processes)
        if room := count_fitting_images(needs, free, device):
            if fitting is not config:
                text = "an image does not fit into memory: activations are computed again in the "
                yield Notice(f"{text}backward pass (--gradient-checkpointing)", warning=True)
            return fitting, room
    raise UsageError(
        f"one image of {blueprint.space.size_text} takes "
        f"{format_bytes(needs.total_bytes(1))} of memory in training, and {format_bytes(free)} "
        "are free",
        f"Try {_suggest_smaller(needs, blueprint, free)}",
        code="out_of_memory",
    )


def split_batch(config: TrainConfig, room: int, processes: int) -> Work[TrainConfig]:
    """Return `config` with its batch in parts of at most `room` images, with a warning."""
    batch_size = config.images_per_step
    parts = min(-(-batch_size // (processes * room)), batch_size // processes)
    if parts > config.accumulation:
        yield Notice(
            f"a batch of {batch_size} images does not fit into memory at once: it is "
            f"computed in {parts} parts (--accumulation {parts})",
            warning=True,
        )
        config = dataclasses.replace(config, accumulation=parts)
    return config


def count_fitting_images(needs: MemoryCost, free: int, device: str) -> int:
    """Return the number of images per part that every process has memory for."""
    images = max(0, (free - needs.fixed) // max(1, int(needs.image * SLACK.get(device, 1.0))))
    if images == 0 and needs.total_bytes(1) <= free:
        images = 1  # it may just fit
    return int(min(gather_object([images])))


def _suggest_smaller(needs: MemoryCost, blueprint: Blueprint, free: int) -> str:
    """Suggest options of a run that fits."""
    if needs.fixed < free:
        ratio = (free - needs.fixed) / max(1, needs.image)
        patch = blueprint.architecture.patch(blueprint.config)
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


# The time of a step, from its operations.

SPEEDS, GPU, HALF = {"cpu": 6e10, "mps": 2e12}, 2e13, 3
"""Floating-point operations per second of a training step in float32, on a thread of a CPU, on
Apple's GPUs, and on other GPUs. HALF is the speed-up by half precision. One core of an AMD EPYC
computes 1.3e11 in float32, and 1.9e11 to 2.6e11 in bfloat16. Speeds of GPUs are guesses."""

UPDATE = 8000
"""Operations of an optimizer step for each parameter: 20 ms on this core with `tiny`."""


@functools.lru_cache
def count_operations(blueprint: Blueprint) -> int:
    """Count the floating-point operations of a sample in a step, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        cond = blueprint.conditions.make_keywords(torch.zeros(1, dtype=torch.long))
        net = blueprint.build_on_meta()
        net(torch.zeros(1, *blueprint.input_space.shape), torch.zeros(1), **cond).sum().backward()
    return int(counter.get_total_flops())


def predict_seconds(
    config: TrainConfig, blueprint: Blueprint, images: int, processes: int
) -> float:
    """Predict the seconds of a step from its operations, on the slowest process.

    The prediction is the same on a busy machine, so that a choice that rests on it is, too.
    """
    parameters = sum(map(math.prod, blueprint.shapes.values()))
    operations = math.ceil(images / processes) * count_operations(blueprint) + UPDATE * parameters
    return operations / predict_speed(config.device, config.precision)


def predict_speed(device: str, precision: str) -> float:
    """Predict the floating-point operations per second of training on the slowest process."""
    device = device_type(device)
    speed = SPEEDS.get(device, GPU) * (torch.get_num_threads() if device == "cpu" else 1)
    if precision != "fp32":
        speed *= HALF
    # Processes with different numbers of threads must make the same choices.
    return float(min(gather_object([speed])))
