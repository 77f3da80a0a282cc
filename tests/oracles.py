"""Exact answers: data whose best denoiser is known in closed form.

Gaussian data x_0 ~ N(0, SPREAD^2), a mixture of Gaussians, and a finite set of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core import SCHEDULES, TARGETS, VARIANCES, Denoiser, Prediction, Process
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.core.parameterization import LEARNED, MEASURED
from diffuse_cli.core.schedules import zero_terminal_snr

SPREAD = 0.5
SAID = 0.3
"""What the exact network says of a learned variance."""
ERRORS = DenoisingErrors((0.0,), (0.04,))
"""Errors of x_0 that are the same at every timestep."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def process_of(schedule: str, num_timesteps: int) -> Process:
    return Process(SCHEDULES[schedule](num_timesteps))


def zero_snr(num_timesteps: int = 1000) -> Process:
    """linear, rescaled so that alpha_bar ends at 0 (Lin et al. 2024, algorithm 1)."""
    return Process(zero_terminal_snr(SCHEDULES["linear"](num_timesteps)))


def gain(alpha: Any, sigma: Any, spread: float = SPREAD) -> Any:
    """E[x_0 | x_t] / x_t."""
    return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)


def exact_denoise(process: Process, variance: str = "small", spread: float = SPREAD) -> Any:
    """The exact denoiser, with no network, target or inversion in between."""

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, like=x_t)
        x0 = gain(alpha, sigma, spread) * x_t

        def log_var(t: Any, s: Any = None) -> Any:
            return VARIANCES[variance](process.coefficients(t, s, like=x_t), said(variance, x_t))

        return Prediction(x0, (x_t - alpha * x0) / sigma, None, log_var)

    return denoise


def said(variance: str, x: Tensor) -> Tensor | None:
    """What a variance reads: what the network says beside its prediction, or the error of x_0."""
    known = dict.fromkeys(LEARNED, SAID) | dict.fromkeys(MEASURED, ERRORS.errors[0])
    return torch.full_like(x, known[variance]) if variance in known else None


def denoiser_with(net: Any, process: Process, target: str, variance: str) -> Denoiser:
    """A denoiser with any variance."""
    return Denoiser(net, process, target, variance, errors=ERRORS)


def posterior_coefficients(process: Process, i: int) -> tuple[float, float]:
    """c1 and c2 of (i, i - 1), from the definition."""
    bar = float(process.alpha_bars[i])
    before = float(process.alpha_bars[i - 1]) if i > 0 else 1.0
    c1 = math.sqrt(before) * (1 - bar / before) / (1 - bar)
    c2 = math.sqrt(bar / before) * (1 - before) / (1 - bar)
    return c1, c2


def exact_net(
    process: Process, target: str, variance: str = "small", spread: float = SPREAD
) -> Callable[..., Tensor]:
    """A network trained on `process` to perfection: the exact denoiser's answer in `target`,
    computed in float64 from the timesteps it is shown; beside it `SAID` for a learned variance."""
    known: dict[float, tuple[float, float]] = {}

    def row(shown: float) -> tuple[float, float]:
        """y = slope * x_t + 0, as (slope, time)."""
        time = shown * process.num_timesteps / 1000
        nearest = round(time)
        time = nearest if abs(time - nearest) < 1e-3 else time
        bar = process.alpha_bar(time)
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        x0 = gain(alpha, sigma, spread)
        eps = (1 - alpha * x0) / sigma
        a, b = TARGETS[target](alpha, sigma, *posterior_coefficients(process, nearest))
        return float(a) * x0 + float(b) * eps, time

    def net(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        slopes = []
        for shown in t.tolist():
            if shown not in known:
                known[shown] = row(shown)
            slopes.append(known[shown][0])
        scale = torch.tensor(slopes, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        y = scale * x.double()
        return torch.cat([y, torch.full_like(y, SAID)], 1) if variance in LEARNED else y

    return net


def exact_denoiser(process: Process, target: str, variance: str = "small") -> Denoiser:
    return denoiser_with(exact_net(process, target, variance), process, target, variance)


MIXTURE = ((0.4, -0.6, 0.25), (0.6, 0.5, 0.35))
"""Weight, mean and spread of each component; every pixel is drawn from it by itself."""


def mixture_denoise(process: Process, components: Any = MIXTURE) -> Any:
    """The exact denoiser of a mixture: E[x_0 | x_t] of each component, by its posterior weight."""
    weight, mean, spread = torch.tensor(components, dtype=torch.float64).T

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, like=x_t)
        x = x_t[..., None]
        variance = alpha**2 * spread**2 + sigma**2
        off = x - alpha * mean
        logits = weight.log() - 0.5 * variance.log() - 0.5 * off**2 / variance
        x0 = (logits.softmax(-1) * (mean + alpha * spread**2 / variance * off)).sum(-1).to(x_t)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def around(process: Process, mean: float, spread: float = SPREAD) -> Any:
    """E[x_0 | x_t] of data of N(mean, spread^2)."""

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, like=x_t)
        x0 = mean + gain(alpha, sigma, spread) * (x_t - alpha * mean)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def gaussian_denoise(process: Process, mean: Tensor, covariance: Tensor) -> Any:
    """The exact denoiser of samples whose elements, in a row, are N(mean, covariance)."""
    one = torch.eye(len(mean), dtype=mean.dtype)

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.alpha_sigma(t, like=x_t)
        seen = torch.linalg.solve(alpha**2 * covariance + sigma**2 * one, alpha * covariance)
        x0 = (mean + (x_t.flatten(1) - alpha * mean) @ seen).reshape(x_t.shape)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


class Exact(Denoiser):
    """A denoiser that is a function of x_t and t, such as one of these."""

    def __init__(self, process: Process, denoise: Any) -> None:
        self.process, self.denoise = process, denoise

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        return self.denoise(x_t, t)


def ideal_net(process: Process, images: Tensor) -> Callable[..., Tensor]:
    """The best prediction of x_0 for data that is these images, (N, C, H, W): their mean, each
    weighted by how likely x_t is from it."""

    def net(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        times = t.tolist()
        known = {
            shown: process.alpha_bar(shown * process.num_timesteps / 1000) for shown in set(times)
        }
        bars = torch.tensor([known[shown] for shown in times], dtype=torch.float64)[:, None]
        off = x.flatten(1)[:, None] - bars[..., None].sqrt() * images.flatten(1)
        logits = -off.square().sum(2) / (2 * (1 - bars))
        return (logits.softmax(1) @ images.flatten(1)).reshape(x.shape)

    return net


def sigma_process(sigmas: list[float]) -> Process:
    """The process whose sigma / alpha takes these values, rising."""
    bars = [1.0, *(1 / (1 + sigma**2) for sigma in sigmas)]
    return Process([1 - after / before for before, after in pairwise(bars)])


def rho_7(n: int, low: float = 0.002, high: float = 80.0) -> list[float]:
    """n rising noise levels, evenly spaced in their seventh root (Karras et al. 2022, eq. 5)."""
    first, last = low ** (1 / 7), high ** (1 / 7)
    return [(first + (last - first) * i / (n - 1)) ** 7 for i in range(n)]


def last(states: Iterator[Any]) -> Tensor:
    """The images at the end of a sampler."""
    *_, state = states
    return state.x
