"""From how many channels on is a processor faster in bfloat16?

Times 3x3 convolutions, channels-last, of narrow to wide networks in float32 and bfloat16 by turns,
forward and with the backward pass, in seconds of the processor: what else the machine does does not
count. `devices.GAINING_WIDTHS` is made of what this says. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/precision.py > benchmarks/results/precision.json
"""

from __future__ import annotations

import json
import math
import time

import common
import torch
from steps import show, significant

WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128)
SIDE, BATCH, ROUNDS, CALLS = 16, 2, 20, 5
DTYPES = torch.float32, torch.bfloat16


def gain(width: int, *, backward: bool) -> float:
    """How many times as fast a convolution is in bfloat16, at its best in each."""
    shapes = (BATCH, width, SIDE, SIDE), (width, width, 3, 3)
    tensors, best = {}, dict.fromkeys(DTYPES, math.inf)
    for dtype in DTYPES:
        ones = (torch.ones(shape, dtype=dtype) for shape in shapes)
        tensors[dtype] = [
            one.to(memory_format=torch.channels_last).requires_grad_(backward) for one in ones
        ]
    for _ in range(ROUNDS):
        for dtype, (x, weight) in tensors.items():
            began = time.process_time()
            for _ in range(CALLS):
                y = torch.conv2d(x, weight, padding=1)
                if backward:
                    torch.autograd.grad(y, (x, weight), y.detach())
            best[dtype] = min(best[dtype], time.process_time() - began)
    return significant(best[torch.float32] / best[torch.bfloat16])


def main() -> None:
    """Measure and print."""
    rows = [
        {"channels": n, "forward": gain(n, backward=False), "both": gain(n, backward=True)}
        for n in WIDTHS
    ]
    show(rows)
    has = {name: torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16")}
    print(json.dumps({"gain": rows, "has": has, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
