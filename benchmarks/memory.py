"""How far is the estimated memory of a training step from what it takes on a processor?

Each row takes two steps in a process of its own. `taken_mib` is its peak beyond what the imports
hold, `estimated_mib` what `train` and `--dry-run` expect. `over_kept` is what the images take over
what is kept of them for the backward pass, which the estimate assumes to be `SLACK`. Prints JSON.

    python benchmarks/memory.py > benchmarks/results/memory.json
"""

from __future__ import annotations

import json
import sys
from itertools import product
from typing import Any

import common
from steps import alone, ours, peak, plan, say

from diffuse_cli.models.activation_memory import SLACK
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.training.step_cost import estimate_memory

PRESETS, SIDES, PRECISIONS = ("tiny", "small"), (64, 256, 512), ("fp32", "bf16")
BATCHES = {64: 32, 256: 4, 512: 2}


def measured(preset: str, side: int, precision: str) -> dict[str, Any]:
    """The peak of two steps, and the estimate."""
    batch = BATCHES[side]
    chosen = plan(side, batch, preset=preset, batch_size=batch, precision=precision)
    needs = estimate_memory(chosen.config, chosen.blueprint, "cpu")
    with open_accelerator(precision, "cpu") as accelerator:
        before = peak()
        act, _ = ours(chosen, accelerator)
        for _ in range(2):
            act()
    taken = peak() - before
    estimated = needs.total_bytes(batch, SLACK["cpu"]) / 2**20
    images = (taken * 2**20 - needs.fixed) / (batch * needs.image)
    return {
        "preset": preset,
        "side": side,
        "precision": precision,
        "batch_size": batch,
        "taken_mib": round(taken),
        "estimated_mib": round(estimated),
        "ratio": round(estimated / taken, 2),
        "over_kept": round(images, 2),
    }


def main() -> None:
    """Measure and print."""
    if sys.argv[1:]:
        preset, side, precision = sys.argv[1:]
        print(json.dumps(measured(preset, int(side), precision)))
        return
    rows = []
    for names in product(PRESETS, map(str, SIDES), PRECISIONS):
        rows.append(alone(__file__, *names))
        say(str(rows[-1]))
    print(json.dumps({"rows": rows, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
