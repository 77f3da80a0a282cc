"""How few timesteps per image estimate the bound as well as many? Ten repeats of each way.

Ways: one timestep drawn evenly from each of 50 or 8 strata of geometric width (`strata`), and the
visits of `diffuse eval` (`plan_visits`). Each is repeated with ten seeds, at the same held-out
images, where only timesteps and noise differ, and at ten disjoint sets of them, where the spread is
what the reported standard error must be. Prints JSON.

    diffuse train DATA --preset tiny --steps 600 --batch-size 16 -o tiny.safetensors
    python benchmarks/bound.py DATA tiny.safetensors -n 64
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.likelihood import bound_terms, draw_visits, plan_visits, prior_bits, strata
from diffuse_cli.core.process import Process
from diffuse_cli.evaluation.variational_bound import draw_positions
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import draw_noise, philox

REPEATS = 10

Expected = Callable[[Process, int], Tensor]
Places = Callable[[int, range, int], np.ndarray[Any, Any]]


def geometric(process: Process, n: int) -> Tensor:
    """Each timestep as often as one draw from its stratum hits it."""
    groups = strata(process.num_timesteps, n)
    return torch.cat([torch.full((len(g),), 1 / len(g), dtype=torch.float64) for g in groups])


def independent(seed: int, indices: range, n: int) -> np.ndarray[Any, Any]:
    """As `draw_positions`, but with nothing in common between images."""
    return np.stack([philox(seed, "bits-alone", i).random(n) for i in indices])


WAYS: dict[str, tuple[Expected, Places, int]] = {
    "strata 50": (geometric, independent, 50),
    "strata 8": (geometric, independent, 8),
    **{f"visits {n}": (plan_visits, draw_positions, n) for n in (4, 8, 12)},
}


def bits(denoiser: Denoiser, x0: Tensor, way: str, seed: int) -> np.ndarray[Any, Any]:
    """An estimate of the bound of each image, (N,)."""
    spread, placed, n = WAYS[way]
    expected, indices = spread(denoiser.process, n), range(len(x0))
    times = draw_visits(expected, torch.from_numpy(placed(seed, indices, n)))
    total = prior_bits(denoiser, x0).double()
    for k, t in enumerate(times.unbind(1)):
        noise = [draw_noise(seed, "bits", i, k, shape=x0.shape[1:]) for i in indices]
        (term,) = bound_terms(denoiser, x0, [(t, torch.stack(noise))])
        total += term.double() / expected[t]
    return total.numpy()


def summary(estimates: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of (REPEATS, N) estimates: the mean, the spread of the ten means, and their mean error."""
    means = estimates.mean(1)
    errors = estimates.std(1, ddof=1) / np.sqrt(estimates.shape[1])
    found = {
        "bits_per_dim": means.mean(),
        "spread": means.std(ddof=1),
        "standard_error": np.sqrt((errors**2).mean()),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def main() -> None:
    """Repeat every way at the same and at disjoint images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    results = []
    with open_accelerator(resolve_precision("fp32")) as accelerator:
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        pixels = common.held_out(common.read(options.data), REPEATS * options.n)
        x0 = loaded.space.to_model(torch.from_numpy(pixels))
        if len(x0) < REPEATS * options.n:
            parser.error(f"{len(x0)} images are held out, and ten times {options.n} are needed")
        sets = x0.split(options.n)
        for way in options.ways.split(","):
            began = time.process_time()
            same, apart = (
                np.stack([bits(loaded.denoiser, images, way, s) for s, images in enumerate(chosen)])
                for chosen in ([sets[0]] * REPEATS, sets)
            )
            cost = (time.process_time() - began) / (2 * REPEATS * options.n)
            within = float(np.sqrt(same.var(0, ddof=1).mean()))
            row = {
                "way": way,
                "processor_milliseconds_per_image": round(1000 * cost, 1),
                "spread_of_one_image": round(within, 4),
                "spread_between_images": round(float(same.mean(0).std(ddof=1)), 4),
                "same_images": summary(same),
                "disjoint_images": summary(apart),
            }
            results.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps({"n": options.n, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
