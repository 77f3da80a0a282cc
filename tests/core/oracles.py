"""Exact answers: data x_0 ~ N(0, SPREAD^2), whose best denoiser is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core import SCHEDULES, TARGETS, VARIANCES, Denoiser, Prediction, Process

SPREAD = 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def process_of(schedule: str, num_timesteps: int) -> Process:
    return Process(SCHEDULES[schedule](num_timesteps))


def zero_snr(num_timesteps: int = 1000) -> Process:
    """linear, rescaled so that alpha_bar ends at 0 (Lin et al. 2024, algorithm 1)."""
    alphas = process_of("linear", num_timesteps).alpha_bars.sqrt()
    alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    bars = torch.cat([torch.ones(1, dtype=torch.float64), alphas**2])
    return Process(1 - bars[1:] / bars[:-1])


def gain(alpha: Any, sigma: Any, spread: float = SPREAD) -> Any:
    """E[x_0 | x_t] / x_t."""
    return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)


def exact_denoise(process: Process, variance: str = "small", spread: float = SPREAD) -> Any:
    """The exact denoiser, with no network, target or inversion in between."""

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, sigma = process.level(t, like=x_t)
        x0 = gain(alpha, sigma, spread) * x_t

        def log_var(t: Any, s: Any = None) -> Any:
            return VARIANCES[variance](process.pair(t, s, like=x_t), None)

        return Prediction(x0, (x_t - alpha * x0) / sigma, None, log_var)

    return denoise


def posterior_coefficients(process: Process, i: int) -> tuple[float, float]:
    """c1 and c2 of (i, i - 1), from the definition."""
    bar = float(process.alpha_bars[i])
    before = float(process.alpha_bars[i - 1]) if i > 0 else 1.0
    c1 = math.sqrt(before) * (1 - bar / before) / (1 - bar)
    c2 = math.sqrt(bar / before) * (1 - before) / (1 - bar)
    return c1, c2


def exact_net(process: Process, target: str, spread: float = SPREAD) -> Callable[..., Tensor]:
    """A network trained on `process` to perfection: the exact denoiser's answer in `target`,
    computed in float64 from the timesteps it is shown."""
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
        return scale * x.double()

    return net


def exact_denoiser(process: Process, target: str, variance: str = "small") -> Denoiser:
    return Denoiser(exact_net(process, target), process, target, variance)


def last(states: Iterator[Any]) -> Tensor:
    """The images at the end of a sampler."""
    *_, state = states
    return state.x
