"""How fast do samplers come to the exact answer, as steps grow?

The data is a mixture of two Gaussians, whose best denoiser is known, so that what is measured is
the sampler's own error. Noise falls from sigma / alpha = 80 to 0.1 on a grid that is even in its
seventh root; the last step, to clean data, is left out. Stochastic samplers have no exact answer
for each start and are left out too. Prints JSON.

    python benchmarks/orders.py --plot docs/images/orders.png > benchmarks/results/orders.json
"""

from __future__ import annotations

import argparse
import io
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core import SAMPLERS, Prediction, Process
from diffuse_cli.media import figures

HIGH, LOW = 80.0, 0.1
WEIGHT, MEAN, SPREAD = torch.tensor([(0.4, -0.6, 0.25), (0.6, 0.5, 0.35)], dtype=torch.float64).T
STEPS = (8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
START = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
MEASURED: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("ddim", {}),
    "heun": ("heun", {}),
    "dpmpp-2m": ("dpmpp-2m", {}),
    "ipndm": ("ipndm", {}),
    "unipc --order 2": ("unipc", {"order": 2}),
    "unipc --order 3": ("unipc", {"order": 3}),
}
FINEST = 4000


def levels(n: int) -> list[float]:
    """n + 1 falling noise levels from HIGH to LOW."""
    first, last = HIGH ** (1 / 7), LOW ** (1 / 7)
    return [(first + (last - first) * i / n) ** 7 for i in range(n + 1)]


def expected(z: Tensor, level: float) -> Tensor:
    """E[x_0 | z] of the mixture, z = x / alpha at a noise level."""
    variance = SPREAD**2 + level**2
    off = z[..., None] - MEAN
    weights = (WEIGHT.log() - 0.5 * variance.log() - 0.5 * off**2 / variance).softmax(-1)
    return (weights * (MEAN + SPREAD**2 / variance * off)).sum(-1)


def exact() -> Tensor:
    """z at LOW: the probability-flow equation solved by the classical Runge-Kutta method."""

    def slope(z: Tensor, u: float) -> Tensor:
        return 7 / u * (z - expected(z, u**7))

    z = HIGH * START
    for a, b in pairwise(level ** (1 / 7) for level in levels(FINEST)):
        h = b - a
        k1 = slope(z, a)
        k2 = slope(z + h / 2 * k1, a + h / 2)
        k3 = slope(z + h / 2 * k2, a + h / 2)
        k4 = slope(z + h * k3, b)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z


def sampled(name: str, options: dict[str, Any], n: int) -> tuple[Tensor, int]:
    """z at LOW after n steps of a sampler, and how often it evaluated the denoiser for that."""
    grid = levels(n)
    bars = [1.0, *(1 / (1 + level**2) for level in reversed(grid))]
    process = Process([1 - after / before for before, after in pairwise(bars)])
    calls = 0

    def denoise(x: Tensor, t: Any, /, **cond: Any) -> Prediction:
        nonlocal calls
        calls += 1
        alpha, sigma = process.alpha_sigma(t, like=x)
        x0 = expected(x / alpha, sigma / alpha)
        return Prediction(x0, (x - alpha * x0) / sigma)

    x = START * HIGH / math.sqrt(1 + HIGH**2)
    for state in SAMPLERS[name](denoise, process, x, range(n, -1, -1), noise=None, **options):
        if state.t == 0:
            return state.x * math.sqrt(1 + LOW**2), calls
    raise AssertionError("a sampler visits every time")


def measure() -> dict[str, list[dict[str, float]]]:
    """For each sampler and number of steps, evaluations and root mean square error."""
    truth = exact()
    table: dict[str, list[dict[str, float]]] = {}
    for label, (name, options) in MEASURED.items():
        table[label] = []
        for n in STEPS:
            z, calls = sampled(name, options, n)
            error = float((z - truth).square().mean().sqrt())
            table[label].append({"steps": n, "evaluations": calls, "error": error})
    return table


def slopes(table: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """The observed orders: how often the error halves where the steps double, at the end."""
    found = {}
    for label, rows in table.items():
        first, last = rows[-5], rows[-1]
        ratio = math.log(first["error"] / last["error"]) / math.log(last["steps"] / first["steps"])
        found[label] = round(ratio, 2)
    return found


def plot(table: dict[str, list[dict[str, float]]]) -> bytes:
    """Error over evaluations, both logarithmic, each line named at its end; PNG."""
    sheet = figures.Sheet(7.4, 5.0, 150)
    sheet.text(0.3, 0.3, "Error of a sampler by network evaluations", fontsize=12, va="center")
    sheet.text(
        0.3, 0.58, "exact denoiser of a mixture, noise from 80 to 0.1, log-log; slope at the end",
        fontsize=8.5, va="center", color=figures.FAINT,
    )  # fmt: skip
    axes = sheet.axes(0.8, 0.9, 5.2, 3.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    steep = slopes(table)
    for i, (label, rows) in enumerate(table.items()):
        shown = [row for row in rows if row["evaluations"] <= STEPS[-1]]
        x, y = ([row[key] for row in shown] for key in ("evaluations", "error"))
        axes.plot(x, y, "o-", color=figures.color(i), linewidth=1.8, markersize=4)
        axes.annotate(
            f"{label}   {steep[label]:.1f}", (x[-1], y[-1]), (7, 0), textcoords="offset points",
            color=figures.color(i), fontsize=8.5, va="center", annotation_clip=False,
        )  # fmt: skip
    ticks = [8, 16, 32, 64, 128, 256]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("root mean square error")
    axes.tick_params(length=0)
    buffer = io.BytesIO()
    sheet.render().save(buffer, "png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Measure, draw where asked, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    table = measure()
    if options.plot:
        options.plot.write_bytes(plot(table))
    print(json.dumps({"slopes": slopes(table), "errors": table}, indent=2))


if __name__ == "__main__":
    main()
