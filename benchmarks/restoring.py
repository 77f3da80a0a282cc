"""How near do restoration methods come, in how many steps and seconds?

An unconditional model fills in, and enlarges, pictures that it was not trained on: every method in
a few steps, azula's MMPS with our denoiser, and diffusers' RePaint scheduler. One sample a picture,
one seed. PSNR in dB of the sample against the picture: its mean with the standard error over
pictures, and its median; |A(x) - y| at most, in levels of 255, before any projection. Prints JSON.

    python benchmarks/restoring.py model.safetensors --real OTHER_IMAGES
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor

from diffuse_cli.core import RESTORATIONS, SAMPLERS, Denoiser, Process
from diffuse_cli.core.degradations import Degradation, parse
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.samplers import sample_with_jumps, split_path
from diffuse_cli.sampling.model_loading import load_denoiser
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import image_noise, philox

CPU = torch.device("cpu")
Restore = Callable[[Degradation, Tensor, Tensor], Tensor]
"""From the degradation, y and the pictures, whose known parts alone may be used."""


def ours(
    denoiser: Denoiser, method: str, sampler: str, steps: int, jumps: int, seed: int
) -> Restore:
    """A method as the commands run it."""

    def restore(degradation: Degradation, y: Tensor, x0: Tensor) -> Tensor:
        process, wrap = denoiser.process, RESTORATIONS[method]
        told = (
            clip(wrap(denoiser, process, degradation, y), process)
            if wrap.gradients
            else wrap(clip(denoiser, process), process, degradation, y)
        )
        noise = functools.partial(noise_of, seed, x0)
        times = process.times(steps)
        path = split_path(times, max(1, round(steps / 10)), jumps)
        *_, state = sample_with_jumps(
            functools.partial(SAMPLERS[sampler], told, process),
            process,
            noise(-1),
            path,
            noise=noise,
        )
        return state.x

    return restore


def noise_of(seed: int, like: Tensor, k: int) -> Tensor:
    """The k-th noise of each picture."""
    return image_noise(seed, range(len(like)), k, like.shape[1:], CPU)


def azula(denoiser: Denoiser, steps: int, seed: int) -> Restore:
    """azula's MMPS and DDIM, with our denoiser as its own."""
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDIMSampler

    process, last = denoiser.process, denoiser.process.num_timesteps - 1

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        bar = torch.tensor(process.alpha_bar(float(t) * last))
        return bar.sqrt().float(), (1 - bar).sqrt().float()

    class Ours(Base):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
            return DiracPosterior(mean=denoiser(x_t, float(t) * last).x0)

    def restore(degradation: Degradation, y: Tensor, x0: Tensor) -> Tensor:
        cov = IsotropicCovariance(torch.tensor(1e-4))
        told = MMPSDenoiser(Ours(), y, degradation.apply, cov, iterations=3)
        sampler = DDIMSampler(told, steps=steps, silent=True)
        end: Tensor = sampler(noise_of(seed, x0, -1))
        return end

    return restore


def repaint(denoiser: Denoiser, steps: int, jumps: int, seed: int) -> Restore:
    """diffusers' RePaint scheduler, with our denoiser; masks only."""
    from diffusers import RePaintScheduler

    process: Process = denoiser.process

    def restore(degradation: Degradation, y: Tensor, x0: Tensor) -> Tensor:
        known = degradation.apply(torch.ones_like(x0))
        scheduler = RePaintScheduler(
            process.num_timesteps, trained_betas=process.betas.numpy(), eta=1.0
        )
        scheduler.set_timesteps(steps, max(1, round(steps / 10)), jumps)
        generator, x = torch.Generator().manual_seed(seed), noise_of(seed, x0, -1)
        before = int(scheduler.timesteps[0]) + 1
        for t in map(int, scheduler.timesteps):
            if t < before:
                eps = clip(denoiser, process)(x, t).eps
                x = scheduler.step(eps, t, x, y, known, generator).prev_sample
            else:
                x = scheduler.undo_step(x, before, generator)
            before = t
        return x

    return restore


def contenders(
    denoiser: Denoiser, form: str, seed: int
) -> Iterator[tuple[dict[str, Any], Restore]]:
    """Every method with every number of steps."""
    for method in RESTORATIONS:
        for steps in (5, 20):
            row = {"method": method, "sampler": "unipc", "steps": steps, "jumps": 1}
            yield row, ours(denoiser, method, "unipc", steps, 1, seed)
    for sampler in ("ddpm", "unipc"):
        row = {"method": "ddnm", "sampler": sampler, "steps": 20, "jumps": 10}
        yield row, ours(denoiser, "ddnm", sampler, 20, 10, seed)
    if importlib.util.find_spec("azula") is not None:
        row = {"method": "azula's MMPS", "sampler": "its DDIM", "steps": 20, "jumps": 1}
        yield row, azula(denoiser, 20, seed)
    if form.startswith("mask") and importlib.util.find_spec("diffusers") is not None:
        row = {"method": "diffusers' RePaint", "sampler": "its own", "steps": 20, "jumps": 10}
        yield row, repaint(denoiser, 20, 10, seed)


def measure(restore: Restore, degradation: Degradation, x0: Tensor) -> dict[str, float]:
    """PSNR and consistency of a sample of each picture, and seconds a sample."""
    y = degradation.apply(x0)
    began = time.perf_counter()
    found = restore(degradation, y, x0).detach().clamp(-1, 1)
    seconds = time.perf_counter() - began
    errors = (found - x0).double().square().flatten(1).mean(1)
    psnr = [10 * math.log10(4 / max(error, 1e-10)) for error in errors.tolist()]
    missed = (degradation.apply(found) - y).abs().max()
    return {
        "psnr": round(statistics.mean(psnr), 2),
        "psnr_standard_error": round(statistics.stdev(psnr) / math.sqrt(len(psnr)), 2),
        "psnr_median": round(statistics.median(psnr), 2),
        "off": round(float(missed) * 127.5, 2),
        "seconds": round(seconds / len(x0), 3),
    }


def main() -> None:
    """Measure every method on every degradation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--real", required=True)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument(
        "--degradations", nargs="*", default=["mask:half", "mask:random", "low-res:4"]
    )
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    results: list[dict[str, Any]] = []
    with open_accelerator("fp32", "cpu") as accelerator, contextlib.suppress(KeyboardInterrupt):
        loaded = finish(load_denoiser(o.model, "ema", accelerator))
        height, width = loaded.space.size
        stored = np.ascontiguousarray(common.read(o.real, size=(height, width)).stored)
        chosen = np.linspace(0, len(stored) - 1, o.n).round().astype(int)
        x0 = loaded.space.to_model(torch.from_numpy(stored[chosen]))
        for form in o.degradations:
            made = parse(form).fit_shape(loaded.space.shape)
            draws = [philox(o.seed, "degraded", i).random(made.uniforms) for i in range(o.n)]
            degradation = made.draw_parts(torch.from_numpy(np.stack(draws)).float())
            for row, restore in contenders(loaded.denoiser, form, o.seed):
                results.append({"degradation": form, **row, **measure(restore, degradation, x0)})
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
            plain = measure(lambda a, y, x0: a.pinv(y), degradation, x0)
            results.append({"degradation": form, "method": "pseudo-inverse", **plain})
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
