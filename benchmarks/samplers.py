"""Which sampler, with how many steps? Sampler x steps x KID on trained models.

Every cell draws the same images' noise (one seed) and is compared with the same held-out images.
`evaluations` counts what a sample costs, which for heun is twice its steps less one. Prints JSON.

    python benchmarks/samplers.py DATA MODEL ... > benchmarks/results/samplers.json
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import common

from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.denoiser import Prediction
from diffuse_cli.core.samplers import default_spacing
from diffuse_cli.sampling.generation import LoadedModel, load_denoiser
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish


def evaluations(
    loaded: LoadedModel, accelerator: Any, sampler: str, steps: int, spacing: str | None
) -> int:
    """Network evaluations of one sample, counted."""
    calls = 0

    def denoise(x: Any, t: Any, **cond: Any) -> Prediction:
        nonlocal calls
        calls += 1
        return Prediction(0 * x, x)

    process = loaded.denoiser.process
    import torch

    x = torch.zeros(1, 1, 1, 1)
    times = process.times(steps, spacing or default_spacing(sampler, steps))
    for _ in SAMPLERS[sampler](denoise, process, x, times, noise=lambda k: x):
        pass
    return calls


def main() -> None:
    """Sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("models", nargs="+")
    parser.add_argument("-n", type=int, default=250)
    parser.add_argument("--steps", default="5,10,20,50")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--spacing", help="in place of the samplers' own")
    options = parser.parse_args()
    images = common.read(options.data)
    results: list[dict[str, Any]] = []
    with open_accelerator(resolve_precision("auto")) as accelerator:
        real = common.features(common.held_out(images, 1000), accelerator)
        for name, path in common.names(options.models).items():
            loaded = finish(load_denoiser(path, "ema", accelerator))
            for steps in map(int, options.steps.split(",")):
                for sampler in options.samplers.split(","):
                    pixels, seconds = common.sample(
                        loaded,
                        options.n,
                        accelerator,
                        steps=steps,
                        sampler=sampler,
                        spacing=options.spacing,
                    )
                    spent = evaluations(loaded, accelerator, sampler, steps, options.spacing)
                    results.append(
                        {
                            "model": name,
                            "schedule": loaded.model.diffusion.schedule,
                            "sampler": sampler,
                            "steps": steps,
                            "evaluations": spent,
                            "seconds": round(seconds, 1),
                            **common.distance(real, common.features(pixels, accelerator)),
                        }
                    )
                    print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    settings = {"n": options.n, "real": len(real), "spacing": options.spacing}
    print(json.dumps({**settings, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
