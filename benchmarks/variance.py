"""Does a learned or measured variance give a better likelihood? Bits per dimension of models.

Every model is measured on held-out images under every fixed variance, the optimal one and its own,
over all timesteps and over few. The errors of the optimal variance come from the model file, or, if
it has none, from other held-out images. Differences are to the first model listed. Prints JSON.

    diffuse train DATA --steps 640 -o fixed.safetensors
    diffuse train DATA --steps 640 --variance learned -o learned.safetensors
    python benchmarks/variance.py DATA learned.safetensors fixed.safetensors
    python benchmarks/variance.py DATA model.safetensors -n 96 --respaced 10,30,100
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from diffuse_cli.core import VARIANCES, Denoiser, denoising_errors
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.evaluation.image_sets import LabeledSamples
from diffuse_cli.evaluation.metric_inputs import VariationalBound
from diffuse_cli.evaluation.variational_bound import measure_bound
from diffuse_cli.models.model_file import load
from diffuse_cli.sampling.generation import LoadedModel, load_denoiser
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish
from diffuse_cli.training.optimization import measure_losses


def remember(net: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """`net`, and a list of what it puts out."""
    outputs: list[Tensor] = []

    def remembering(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        outputs.append(net(x, t, **cond))
        return outputs[-1]

    return remembering, outputs


def repeat(outputs: list[Tensor], halves: int) -> Callable[..., Tensor]:
    """A network that puts out what another one did, or the first half of its channels."""
    left = iter(outputs)
    return lambda x, t: next(left).chunk(halves, 1)[0]


def measure_errors(loaded: LoadedModel, pixels: common.Pixels) -> DenoisingErrors:
    """The errors of x_0 on images."""
    found: dict[int, Tensor] = {}
    timesteps = denoising_errors.choose_timesteps(loaded.denoiser.process)
    for t in timesteps:
        losses = measure_losses(
            denoising_errors.squared_error,
            loaded.denoiser,
            loaded.model.blueprint,
            pixels,
            np.full(len(pixels), -1),
            at=t,
            seed=0,
            batch_size=64,
            device=torch.device("cpu"),
        )
        found[t] = torch.cat(list(losses))
    errors = denoising_errors.average(timesteps, found)
    assert errors is not None
    return errors


def variants(own: Denoiser, size: int, errors: DenoisingErrors) -> Iterator[tuple[str, Denoiser]]:
    """A denoiser under its own variance, and then under each fixed one without another pass of
    the network: the draws are the same, and so is its prediction."""

    def made(net: Callable[..., Tensor], variance: str) -> Denoiser:
        whole = Denoiser(net, own.process, own.target, variance, errors=errors)
        return whole if size == own.process.num_timesteps else whole.respaced(times)

    times = own.process.times(size)
    net, outputs = remember(own.net)
    yield own.variance, made(net, own.variance)
    halves = 2 if own.variance in LEARNED else 1
    for name in sorted(set(VARIANCES) - LEARNED - {own.variance}):
        yield name, made(repeat(outputs, halves), name)


def numbers(bound: VariationalBound, first: VariationalBound) -> dict[str, float]:
    """The mean bound, its standard error, its parts, and how much it is above `first`'s.

    The images and their draws are the same, so that the difference is better known than either.
    """
    parts = bound.parts()
    total = parts.sum(1)
    above = total - first.parts().sum(1)
    prior, middle, decoder = parts.mean(0)
    found = {
        "bits_per_dim": total.mean(),
        "standard_error": total.std(ddof=1) / np.sqrt(len(total)),
        "prior": prior,
        "middle": middle,
        "decoder": decoder,
        "above_first": above.mean(),
        "above_first_standard_error": above.std(ddof=1) / np.sqrt(len(above)),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    """Measure every model under every variance it can have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("models", nargs="+")
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--others", type=int, default=96, help="images to measure errors on")
    parser.add_argument("--timesteps", type=int, default=40)
    parser.add_argument("--respaced", default="25", help="also over so many timesteps")
    options = parser.parse_args()
    data = common.read(options.data, load(options.models[0]).blueprint.space.size)
    pixels, others = np.split(common.held_out(data, options.n + options.others), [options.n])
    images = LabeledSamples(pixels, np.full(len(pixels), -1))
    results: list[dict[str, Any]] = []
    first: dict[int, VariationalBound] = {}
    with open_accelerator(resolve_precision("auto")) as accelerator:
        for name, path in common.names(options.models).items():
            loaded = finish(load_denoiser(path, "ema", accelerator))
            own = loaded.denoiser
            full = own.process.num_timesteps
            errors = loaded.model.errors or measure_errors(loaded, others)
            for size in (full, *map(int, filter(None, options.respaced.split(",")))):
                for variance, denoiser in variants(own, size, errors):
                    bound = finish(
                        measure_bound(
                            denoiser,
                            images,
                            loaded.model.blueprint,
                            range(len(images)),
                            timesteps=options.timesteps,
                            seed=0,
                            batch_size=64,
                            device=accelerator.device,
                        )
                    )
                    results.append(
                        {
                            "model": name,
                            "trained": loaded.model.blueprint.diffusion.variance,
                            "loss": loaded.model.training["loss"],
                            "steps": loaded.model.step,
                            "variance": variance,
                            "timesteps": size,
                            **numbers(bound, first.setdefault(size, bound)),
                        }
                    )
                    print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    settings = {"n": len(pixels), "others": len(others), "drawn_timesteps": options.timesteps}
    print(json.dumps({**settings, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
