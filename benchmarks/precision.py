"""From how many channels on is a processor faster in bfloat16?

Times 3x3 convolutions, channels-last, of narrow to wide networks in float32 and in bfloat16,
forward and with the backward pass. `runtime.GAINING_WIDTHS` is made of what this says. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/precision.py
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import common
import torch
from roofline import convolution
from steps import show, significant

CHANNELS = (8, 16, 24, 32, 64, 128)


def gain(channels: int, side: int, batch: int) -> dict[str, Any]:
    """How many times as fast bfloat16 is."""
    exact, half = (convolution(channels, side, batch, p, "cpu") for p in ("fp32", "bf16"))
    ratios = {name: significant(half[name] / exact[name]) for name in ("forward", "both")}
    return {"channels": channels, **ratios}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    rows = [gain(channels, options.side, options.batch_size) for channels in CHANNELS]
    show(rows)
    has = {name: torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")}
    print(json.dumps({"gain": rows, "has": has, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
