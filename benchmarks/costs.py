"""What does a training take of memory and time, by preset? Counted with fake tensors: no GPU is
needed.

`fixed` are weights, gradients, the moments and the average, with the gradients on their way to
other processes; `image` is what one image of the batch adds. The step holds more than what is kept
for the backward pass (`memory.py`). `gflop` are the operations of one image in a step, forward and
backward. Prints JSON.

    python benchmarks/costs.py > benchmarks/results/costs.json
"""

from __future__ import annotations

import json
import math

from diffuse_cli.config.presets import PRESETS
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Conditions, Space
from diffuse_cli.training.decisions import complete_config
from diffuse_cli.training.step_cost import count_operations, estimate_memory

SIDES = (64, 128, 256, 512)
"""Of the presets that adapt to a size. A published one has its own: 64, or as below."""

OWN = {"ddpm-cifar10": 32, "iddpm-cifar10": 32}


def sides(name: str) -> tuple[int, ...]:
    """The sizes to count a preset at."""
    if not PRESETS[name].published:
        return SIDES
    return (PRESETS[name].train.get("size", OWN.get(name, 64)),)


def counted(preset: str, side: int) -> dict[str, object]:
    """The costs of a preset, in MiB, on one of several processes."""
    space = Space(channels=3, size=(side, side))
    row: dict[str, object] = {"preset": preset, "side": side}
    for precision in ("fp32", "bf16"):
        asked = TrainConfig(data="", preset=preset, precision=precision)
        config, blueprint = complete_config(asked, space, Conditions())
        found = estimate_memory(config, blueprint, "cpu", processes=2)
        row["parameters"] = sum(map(math.prod, blueprint.shapes.values()))
        row["fixed"] = round(found.fixed / 2**20)
        row[f"image_{precision}"] = round(found.image / 2**20, 1)
    row["patch"] = getattr(blueprint.config, "patch", 1)
    row["gflop"] = round(count_operations(blueprint) / 1e9, 2)
    return row


if __name__ == "__main__":
    print(json.dumps([counted(name, side) for name in PRESETS for side in sides(name)], indent=2))
