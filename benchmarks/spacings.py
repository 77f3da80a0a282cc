"""Which times should few steps of a sampler visit? Every spacing, by an exact oracle and by models.

The oracle is the exact denoiser of Gaussian data: the spread of what comes out over that of the
data, for components of several spreads. A component wider than a pixel, such as the brightness of
an image, has a spread above 1. Models draw from the same noise with every spacing and are compared
with the same real images: KID, Fréchet distance, recall, the power of waves shorter than four
pixels, the mean absolute Laplacian, brightness and how much it varies. What is done is in --out and
not repeated.

    python benchmarks/spacings.py --oracle --out F
    python benchmarks/spacings.py MODEL ... --real TEST --data fashion --out F
    python benchmarks/spacings.py --show F
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from diffuse_cli.core import SAMPLERS, SCHEDULES, SPACINGS, Prediction, Process
from diffuse_cli.core.samplers import OF_DISTILLED
from diffuse_cli.metrics import frechet
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.system.devices import open_accelerator
from diffuse_cli.system.events import finish

SPREADS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0, 8.0, 16.0)
COUNTS = (4, 5, 6, 8, 10, 12, 20)
BASE = "trailing"
RATIOS = ("kid", "frechet")


def spreads(process: Process, sampler: str, times: Sequence[float]) -> list[float]:
    """The spread of what comes out over that of the data, for each of `SPREADS`.

    Everything is linear: the squares of what each unit of noise leads to add up.
    """
    own = torch.tensor(SPREADS, dtype=torch.float64).reshape(1, 1, -1)

    def denoise(x: torch.Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, like=x)
        x0 = alpha * own**2 / (alpha**2 * own**2 + sigma**2) * x
        return Prediction(x0, (x - alpha * x0) / sigma)

    draws = torch.eye(len(times) + 1, dtype=torch.float64)[:, :, None, None].expand(-1, -1, 1, 1)
    start = draws[-1] * torch.ones_like(own)
    *_, end = SAMPLERS[sampler](denoise, process, start, times, noise=lambda k: draws[k])
    found = end.x.square().sum(0).sqrt().flatten() / own.flatten()
    return [round(value, 3) for value in found.tolist()]


def oracle() -> Iterator[dict[str, Any]]:
    """Every spacing of every sampler and schedule of the product."""
    for schedule in ("cosine", "linear", "flow"):
        process = Process(SCHEDULES[schedule](1000))
        for sampler in sorted(set(SAMPLERS) - OF_DISTILLED):
            for spacing in SPACINGS:
                for steps in COUNTS:
                    yield {
                        "schedule": schedule,
                        "sampler": sampler,
                        "spacing": spacing,
                        "steps": steps,
                        "spreads": spreads(process, sampler, process.times(steps, spacing)),
                    }


def detail(pixels: common.Pixels) -> tuple[float, float]:
    """The power of waves shorter than four pixels, and the mean absolute Laplacian, in levels."""
    x = pixels.astype(np.float64)
    height, width = x.shape[2:]
    waves = np.abs(np.fft.fft2(x)) ** 2 / (height * width) ** 2
    down, across = np.abs(np.fft.fftfreq(height)), np.abs(np.fft.fftfreq(width))
    short = np.hypot(down[:, None], across[None, :]) > 0.25
    inner = x[:, :, 1:-1, 1:-1]
    beside = x[:, :, :-2, 1:-1] + x[:, :, 2:, 1:-1] + x[:, :, 1:-1, :-2] + x[:, :, 1:-1, 2:]
    return float((waves * short).sum((2, 3)).mean()), float(np.abs(4 * inner - beside).mean())


def rows(path: str, o: argparse.Namespace, done: set[Any]) -> Iterator[dict[str, Any]]:
    """The results of a model, by steps and spacing."""
    with open_accelerator("bf16", "cpu") as accelerator:
        loaded = finish(load_denoiser(path, "ema", accelerator))
        images = common.some(common.read(o.real, size=loaded.space.size), o.reference)
        real, known = common.features(images, accelerator), detail(images)
        for steps in o.steps:
            for spacing in o.spacings:
                if (Path(path).stem, steps, spacing) in done:
                    continue
                pixels, _ = common.sample(
                    loaded, o.n, accelerator, steps=steps, sampler=o.sampler, spacing=spacing
                )
                fake, found = common.features(pixels, accelerator), detail(pixels)
                yield {
                    "data": o.data,
                    "model": Path(path).stem,
                    "sampler": o.sampler,
                    "steps": steps,
                    "spacing": spacing,
                    **common.distance(real, fake),
                    "frechet": round(frechet.estimate_frechet(real, fake).value, 1),
                    **common.shares(real, fake),
                    "short_waves": round(found[0] / known[0], 4),
                    "laplacian": round(found[1] / known[1], 4),
                    **common.looks(images, pixels),
                }


def show(results: Sequence[dict[str, Any]]) -> str:
    """A line for each set, number of steps and spacing: means over the models, and beside them the
    difference to `BASE` (of KID and Fréchet distance the ratio) with its paired error."""
    lines = []
    for data, steps in dict.fromkeys((r["data"], r["steps"]) for r in results):
        here = [r for r in results if (r["data"], r["steps"]) == (data, steps)]
        bases = {r["model"]: r for r in here if r["spacing"] == BASE}
        for spacing in dict.fromkeys(r["spacing"] for r in here):
            own = [r for r in here if r["spacing"] == spacing and r["model"] in bases]
            told = [f"{data:8} {steps:2} {spacing:9}"]
            keys = ("kid", "frechet", "recall", "short_waves", "laplacian", "means", "brightness")
            for key in keys:
                gains = [
                    math.log(r[key] / bases[r["model"]][key])
                    if key in RATIOS
                    else r[key] - bases[r["model"]][key]
                    for r in own
                ]
                mean = statistics.fmean(gains)
                error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
                gain = f"x{math.exp(mean):.3f}" if key in RATIOS else f"{mean:+.3f}"
                value = statistics.fmean(r[key] for r in own)
                told.append(f"{key} {value:.3f} ({gain} ± {error:.3f})")
            lines.append("  ".join(told))
    return "\n".join(lines)


def lines(told: dict[str, Any]) -> str:
    """Return JSON with a row of each table on a line."""
    entries = []
    for key, value in told.items():
        text = json.dumps(value)
        if key in ("oracle", "results"):
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        entries.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def main() -> None:
    """Measure the oracle or models, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--real")
    parser.add_argument("--data", help="the name of the models' data set")
    parser.add_argument("--reference", type=int, default=500)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--spacings", nargs="+", default=["trailing", "early", "wide"])
    parser.add_argument("--sampler", default="unipc")
    o = parser.parse_args()
    if o.show:
        print(show(json.loads(o.show.read_text())["results"]))
        return
    told = {"n": o.n, "spreads": SPREADS, "machine": common.machine(), "oracle": [], "results": []}
    told |= json.loads(o.out.read_text()) if o.out.exists() else {}
    if o.oracle:
        told["oracle"] = list(oracle())
    for path in o.models:
        done = {(r["model"], r["steps"], r["spacing"]) for r in told["results"]}
        for row in rows(path, o, done):
            told["results"].append(row)
            o.out.write_text(lines(told))
    o.out.write_text(lines(told))


if __name__ == "__main__":
    main()
