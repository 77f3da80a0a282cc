"""From how many steps on should the last step of `ipndm` be DDIM's?

A run of `ipndm` is ended both ways: by the extrapolated step, as any other, and by DDIM, which
returns the denoiser's estimate. Where the data's best denoiser is known, the error of both is
measured: a mixture of two Gaussians, which is smooth, against the exact solution of the
probability-flow equation (root mean square), and five random images of 4x4 with clipping, the
sharpest data there is, against the nearest of them (root mean square, and the largest pixel). With
DATA and a MODEL also the KID of a trained network's images. Prints JSON.

    python benchmarks/ipndm.py DATA MODEL -n 400 > benchmarks/results/ipndm.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import common
import torch
from orders import MEAN, SPREAD, WEIGHT, expected
from torch import Tensor

from diffuse_cli.core import SAMPLERS, SCHEDULES, Denoiser, Prediction, Process, solvers
from diffuse_cli.core.guidance import clip
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish

STEPS = (4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50)
LEVELS = torch.randint(0, 256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(11))
IMAGES = LEVELS / 127.5 - 1
START = torch.linspace(-2, 2, 41, dtype=torch.float64)


def ends(denoise: Any, process: Process, x: Tensor, times: list[Any]) -> dict[str, Tensor]:
    """The images of a run, by how its last step is taken."""
    with mock.patch.object(solvers, "EXTRAPOLATED", math.inf):
        *_, before, last = SAMPLERS["ipndm"](denoise, process, x, times, noise=None)
    return {"extrapolated": last.x, "ddim": denoise(before.x, times[-1]).x0}


# -- exact denoisers ------------------------------------------------------------------------------


def mixture(process: Process) -> Any:
    """The best denoiser of the mixture."""

    def denoise(x: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, like=x)
        x0 = expected(x / alpha, sigma / alpha)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def flow(z: Tensor, level: float) -> Tensor:
    """Where the probability flow takes z = x / alpha from a noise level: to the same quantile."""

    def below(z: Tensor, level: float) -> Tensor:
        spread = (2 * (SPREAD**2 + level**2)).sqrt()
        return (WEIGHT * (1 + torch.erf((z[..., None] - MEAN) / spread)) / 2).sum(-1)

    low, high = torch.full_like(z, -6), torch.full_like(z, 6)
    for _ in range(80):
        middle = (low + high) / 2
        under = below(middle, 0) < below(z, level)
        low, high = middle.where(under, low), high.where(under, middle)
    return low


def finite(process: Process) -> Any:
    """The best denoiser of IMAGES, clipped: their mean, each by how likely x_t is from it."""

    def net(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        bar = process.alpha_bar(float(t[0]) * process.num_timesteps / 1000)
        off = x.flatten(1)[:, None] - math.sqrt(bar) * IMAGES.flatten(1)
        likely = (-off.square().sum(2) / (2 * (1 - bar))).softmax(1)
        return (likely @ IMAGES.flatten(1)).reshape(x.shape)

    return clip(Denoiser(net, process, "x0"), process)


def exact(schedule: str, spacing: str, n: int) -> list[dict[str, Any]]:
    """Both ends of a run of n steps on both data sets."""
    process = Process(SCHEDULES[schedule](1000))
    times = process.times(n, spacing)
    level = math.exp(-process.log_snr(times[0]) / 2)
    truth = flow(START * math.sqrt(1 + level**2), level)
    smooth = ends(mixture(process), process, START, times)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(200, 1, 4, 4, generator=generator)
    row = {"schedule": schedule, "spacing": spacing, "steps": n}
    rows = [
        {**row, "data": "mixture"}
        | {end: round(float((x - truth).square().mean().sqrt()), 4) for end, x in smooth.items()},
        {**row, "data": "images"},
    ]
    for end, x in ends(finite(process), process, noise, times).items():
        nearest = (x[:, None] - IMAGES).square().flatten(2).mean(2).min(1).values
        rows[1][end] = round(float(nearest.mean().sqrt()), 4)
        rows[1][f"{end}_max"] = round(float(x.abs().max()), 3)
    return rows


# -- a trained network ----------------------------------------------------------------------------


def trained(data: str, model: Path, n: int, spacing: str, steps: list[int]) -> list[dict[str, Any]]:
    """KID of both ends, from the same noise, against 1,000 of the real images."""
    rows = []
    with open_accelerator(resolve_precision("fp32")) as accelerator, torch.inference_mode():
        real = common.features(common.read(data).stored[::2][:1000], accelerator)
        loaded = finish(load_denoiser(model, "ema", accelerator))
        process = loaded.denoiser.process
        noise = torch.randn(n, *loaded.shape, generator=torch.Generator().manual_seed(0))
        for count in steps:
            times = process.times(count, spacing)
            denoise = clip(loaded.denoiser, process)
            found = [ends(denoise, process, x, times) for x in noise.split(64)]
            row: dict[str, Any] = {"model": model.stem, "spacing": spacing, "steps": count}
            for end in found[0]:
                x = torch.cat([batch[end] for batch in found])
                row[end] = common.distance(real, common.features(common.to_uint8(x), accelerator))
                row[end]["outside"] = round(float((x.abs() > 1.001).float().mean()), 4)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--steps", default="5,7,10,15,20,30")
    options = parser.parse_args()
    results: dict[str, Any] = {"exact": []}
    for schedule in ("cosine", "linear"):
        for spacing in ("trailing", "karras"):
            for n in STEPS:
                results["exact"] += exact(schedule, spacing, n)
    if options.model:
        steps = [int(n) for n in options.steps.split(",")]
        results["trained"] = trained(options.data, options.model, options.n, "trailing", steps)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
