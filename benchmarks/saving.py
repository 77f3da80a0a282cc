"""What does a checkpoint cost beside the steps between two of them?

Seconds of a step and of a save (files written, synced, renamed, the old one removed) of our
training on random pixels, and the share of the time that saves take at the default settings:
every 500th step, put off where a save would take more than a hundredth. Prints JSON.

    python benchmarks/saving.py > benchmarks/results/saving.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import common
from steps import WARM_UP, ours, plan, say, significant, timed

from diffuse_cli.system import files
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import StopRequest
from diffuse_cli.training.checkpoints import EVERY, SHARE, make_checkpoint
from diffuse_cli.training.monitor import Monitor
from diffuse_cli.training.run_directory import RunDirectory

NETWORKS = {"tiny": 64, "small": 64, "ddpm-cifar10": 16}
"""Presets, with a batch size that a step of a few seconds has at most."""


def measure(preset: str, batch_size: int, rounds: int, precision: str) -> dict[str, Any]:
    """Seconds of a step and of a save, and the share of saving."""
    with open_accelerator(precision) as accelerator, tempfile.TemporaryDirectory() as folder:
        chosen = plan(preset=preset, precision=precision, batch_size=batch_size, size=32)
        step, trainer = ours(chosen, accelerator)
        steps = [timed(step) for _ in range(WARM_UP + 5)][WARM_UP:]
        run = RunDirectory(Path(folder) / "model.safetensors")
        monitor = Monitor(trainer, run, StopRequest())
        saves = []
        for k in range(rounds):
            began = time.monotonic()
            run.save(make_checkpoint(trainer, k + 1, monitor))
            saves.append(time.monotonic() - began)
        size = files.measure_size(run.checkpoints / f"step-{rounds:08d}")
    one, save = median(steps), median(saves)
    between = EVERY * math.ceil(max(1.0, SHARE * save / (EVERY * one)))
    return {
        "preset": preset,
        "batch_size": batch_size,
        "step_s": significant(one),
        "save_s": significant(save),
        "saves_s": [significant(s) for s in saves],
        "checkpoint_mib": significant(size / 2**20),
        "share_at_every_500": significant(save / (EVERY * one)),
        "steps_between": between,
        "share_by_default": significant(save / (between * one)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    precision = resolve_precision("auto")
    networks = []
    for preset, batch_size in NETWORKS.items():
        networks.append(measure(preset, batch_size, options.rounds, precision))
        say(json.dumps(networks[-1]))
    print(json.dumps({**common.machine(), "precision": precision, "networks": networks}, indent=2))


if __name__ == "__main__":
    main()
