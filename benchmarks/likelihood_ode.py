"""How many steps does the likelihood by the probability-flow equation need? The same images each.

Bits per dimension of images in DATA by the equation in 16 to 256 steps, and by the variational
bound, in float32. The error of a number of steps is the difference from 256 steps. Prints JSON.

    python benchmarks/likelihood_ode.py DATA model.safetensors -n 64
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import common
import numpy as np
import torch

from diffuse_cli.evaluation.image_sets import LabeledSamples
from diffuse_cli.evaluation.ode_likelihood import measure_ode_bits
from diffuse_cli.evaluation.variational_bound import measure_bound
from diffuse_cli.metrics.sample_statistics import average
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import permutation

STEPS = (256, 128, 64, 32, 16)
VISITS = 64
"""Timesteps per image for the variational bound."""


def main() -> None:
    """Measure both on the same images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=64)
    options = parser.parse_args()
    results, exact = [], None
    with open_accelerator(resolve_precision("fp32")) as accelerator:
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        found = common.read(options.data, loaded.space.size)
        chosen = found.stored[np.sort(permutation(0, 0, len(found.stored))[: options.n])]
        images = LabeledSamples(chosen, np.full(len(chosen), -1))
        given = (loaded.denoiser, images, loaded.model.blueprint, range(len(images)))
        same: dict[str, Any] = {"seed": 0, "batch_size": 64, "device": torch.device("cpu")}
        began = time.process_time()
        parts = finish(measure_bound(*given, timesteps=VISITS, **same)).parts()
        bound = row("bound", parts.sum(1), began)
        bound["parts"] = dict(zip(("prior", "middle", "decoder"), parts.mean(0), strict=True))
        for steps in STEPS:
            began = time.process_time()
            bits, off = finish(measure_ode_bits(*given, steps=steps, **same)).T
            exact = bits if exact is None else exact
            results.append(
                row("ode", bits, began)
                | {"steps": steps, "estimated_error": off.mean(), "error": (bits - exact).mean()}
            )
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    results = [bound, *reversed(results)]
    print(json.dumps({"n": options.n, "machine": common.machine(), "results": results}, indent=1))


def row(way: str, bits: np.ndarray[Any, Any], began: float) -> dict[str, Any]:
    """The mean of some images with its error, and the time since `began`."""
    value, error = average(bits)
    spent = round((time.process_time() - began) / len(bits), 3)
    return {"way": way, "bits": value, "standard_error": error, "cpu_seconds_per_image": spent}


if __name__ == "__main__":
    main()
