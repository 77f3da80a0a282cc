"""Noise schedules: `num_timesteps -> betas`, t = 0 ... T-1, in float64.

The scale k = 1000/T keeps the total noise of a schedule the same for every number of timesteps,
and no beta exceeds 0.999.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

MAX_BETA = 0.999

Schedule = Callable[[int], list[float]]


def linear(num_timesteps: int) -> list[float]:
    """beta from k * 1e-4 to k * 0.02 in equal steps (Ho et al. 2020, section 4)."""
    k = 1000 / num_timesteps
    return _capped(_linspace(k * 1e-4, k * 0.02, num_timesteps))


def cosine(num_timesteps: int) -> list[float]:
    """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2) (Nichol & Dhariwal 2021, eq. 17)."""
    return _from_alpha_bar(
        lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, num_timesteps
    )


def _from_alpha_bar(alpha_bar: Callable[[float], float], num_timesteps: int) -> list[float]:
    """beta_t = 1 - alpha_bar((t + 1) / T) / alpha_bar(t / T)."""
    levels = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
    return _capped([1 - after / before for before, after in pairwise(levels)])


def _linspace(first: float, last: float, n: int) -> list[float]:
    return [first + (last - first) * i / max(n - 1, 1) for i in range(n)]


def _capped(betas: list[float]) -> list[float]:
    return [min(beta, MAX_BETA) for beta in betas]


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "cosine": cosine,
}
