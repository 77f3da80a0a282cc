"""Predict the time of a training step from its operations."""

from __future__ import annotations

import functools
import math

import torch
from accelerate.utils import gather_object

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.devices import device_type

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


def predict_step_seconds(
    config: TrainConfig, blueprint: Blueprint, images: int, processes: int
) -> float:
    """Predict the seconds of a step from its operations, on the slowest process.

    The prediction is the same on a busy machine, so that a choice that rests on it is, too.
    """
    device = device_type(config.device)
    speed = SPEEDS.get(device, GPU) * (torch.get_num_threads() if device == "cpu" else 1)
    if config.precision != "fp32":
        speed *= HALF
    parameters = sum(map(math.prod, blueprint.shapes.values()))
    operations = math.ceil(images / processes) * count_operations(blueprint)
    # Processes with different numbers of threads must choose the same batch size.
    return float(max(gather_object([(operations + UPDATE * parameters) / speed])))
