"""What can this machine do? The speed of its convolutions, matrix products and memory.

Convolutions are 3x3, channels-last, at the shapes of the DDPM CIFAR-10 network; matrix products
and memory are given at the size of its activations and far beyond the caches. Each figure is the
fastest of several calls. Prints JSON.

    python benchmarks/roofline.py > benchmarks/results/roofline.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import common
import torch
from steps import Act, say, show, significant, timed

from diffuse_cli.system.devices import device_type, has_bfloat16, resolve_precision

SHAPES = ((128, 32), (256, 32), (256, 16), (256, 8), (256, 4))
"""Channels and side of the feature maps."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS, LEAST = 0.3, 4
LARGE = 512 * 2**20
"""Bytes that no cache holds."""


def fastest(act: Act) -> float:
    """The least seconds of a call, of as many as fit into a moment."""
    timed(act)
    began, best, calls = time.perf_counter(), float("inf"), 0
    while calls < LEAST or time.perf_counter() - began < SECONDS:
        best, calls = min(best, timed(act)), calls + 1
    return best


def convolution(channels: int, side: int, batch: int, precision: str, device: str) -> Any:
    """GFLOP/s forward, backward, and of both."""
    options: dict[str, Any] = {"device": device, "dtype": DTYPES[precision]}
    conv: Any = torch.nn.Conv2d(channels, channels, 3, padding=1, **options)
    conv = conv.to(memory_format=torch.channels_last)
    shape = (batch, channels, side, side)
    x, dy = (
        torch.randn(shape, **options).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    with torch.no_grad():
        forward = fastest(lambda: conv(x))
    x.requires_grad_()
    y = conv(x)
    wanted = (x, *conv.parameters())
    backward = fastest(lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True))
    work = 2 * 9 * channels * dy.numel() / 1e9
    return {
        "shape": f"{channels}@{side}",
        "channels": channels,
        "side": side,
        "precision": precision,
        "forward": significant(work / forward),
        "backward": significant(2 * work / backward),
        "both": significant(3 * work / (forward + backward)),
    }


def product(rows: int, width: int, precision: str, device: str) -> dict[str, Any]:
    """GFLOP/s of (rows, width) times (width, width)."""
    options: dict[str, Any] = {"device": device, "dtype": DTYPES[precision]}
    a, b = torch.randn(rows, width, **options), torch.randn(width, width, **options)
    seconds = fastest(lambda: a @ b)
    rate = significant(2 * rows * width * width / 1e9 / seconds)
    return {"shape": f"{rows}x{width}x{width}", "precision": precision, "gflop_per_s": rate}


def traffic(size: int, device: str) -> dict[str, Any]:
    """GB/s of a copy, both ways counted, and of a sum, which only reads."""
    a = torch.ones(size // 4, device=device)
    b = torch.empty_like(a)
    acts: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: b.copy_(a), 2 * size),
        "sum": (a.sum, size),
    }
    rates = {name: significant(n / 1e9 / fastest(act)) for name, (act, n) in acts.items()}
    return {"mib": size // 2**20, **rates}


def measure(batch: int, precisions: tuple[str, ...], device: str) -> dict[str, Any]:
    """All of it; memory at the size of an activation of 128 channels first."""
    say(f"roofline at batch {batch} in {', '.join(precisions)}")
    return {
        "batch_size": batch,
        "convolution_gflop_per_s": [
            convolution(*shape, batch, precision, device)
            for precision in precisions
            for shape in SHAPES
        ],
        "matmul": [
            product(*shape, precision, device)
            for precision in precisions
            for shape in ((batch * 256, 256), (2048, 2048))
        ],
        "memory_gb_per_s": [traffic(size, device) for size in (batch * 2**19, LARGE)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--precision", choices=DTYPES, action="append", help="all that there are instructions for"
    )
    options = parser.parse_args()
    usable = DTYPES if has_bfloat16(device_type()) else ("fp32",)
    precisions = tuple(options.precision or usable)
    found = measure(options.batch_size, precisions, device_type())
    for rows in (value for value in found.values() if isinstance(value, list)):
        show(rows)
    chosen = resolve_precision("auto")
    print(json.dumps({**found, "chosen": chosen, "machine": common.machine()}, indent=1))


if __name__ == "__main__":
    main()
