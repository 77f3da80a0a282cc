"""The variational bound on the negative log-likelihood, in bits per dimension.

L = L_T + sum over t of L_t + L_0   (Ho et al. 2020, eq. 5)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.gaussian import Gaussian
from diffuse_cli.core.guidance import clip as clipped
from diffuse_cli.core.losses import bound_term


@dataclass(frozen=True)
class Bits:
    """Bits per dimension of B samples: total = prior + terms.sum(1).

    Attributes:
        total, prior: shape (B,).
        terms: the term of each timestep, shape (B, T); the first is the decoder's.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor


def prior_bits(denoiser: Denoiser, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_{T-1} | x_0) || N(0, 1)), shape (B,)."""
    standard = Gaussian(torch.zeros_like(x0), 0.0)
    return denoiser.process.prior(x0).kl(standard).flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def bound_terms(
    denoiser: Denoiser,
    x0: Tensor,
    draws: Iterable[tuple[int | Tensor, Tensor]],
    *,
    clip: bool = True,
    **cond: Any,
) -> Iterator[Tensor]:
    """The term of the bound for each (time, noise), shape (B,); a time is an int or (B,) ints."""
    process = denoiser.process
    denoise = clipped(denoiser, process) if clip and denoiser.levels else denoiser
    for t, noise in draws:
        x_t = process.diffuse(x0, t, noise)
        yield bound_term(process, denoise(x_t, t, **cond), x0, x_t, t, denoiser.levels)


def bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    noise: Callable[[int], Tensor],
    clip: bool = True,
    **cond: Any,
) -> Bits:
    """The whole bound over the denoiser's process.

    Args:
        x0: (B, C, *size): levels over [-1, 1], or floats for a denoiser without levels.
        noise: `noise(t)` is the noise at t, shaped like x0.
        clip: clamp the predicted x_0 to [-1, 1], which lowers the bound of levels.
    """
    draws = ((t, noise(t)) for t in range(denoiser.process.num_timesteps))
    terms = torch.stack(list(bound_terms(denoiser, x0, draws, clip=clip, **cond)), 1)
    prior = prior_bits(denoiser, x0)
    return Bits(prior + terms.sum(1), prior, terms)


def strata(num_timesteps: int, n: int) -> list[range]:
    """{0}, then n - 1 strata of 1 ... T-1 whose widths grow geometrically from 1.

    One timestep per stratum, its term times the width, estimates the sum without bias and samples
    the early terms, which are large and vary most, most densely.
    """
    span, parts = num_timesteps - 1, min(n, num_timesteps) - 1
    ratio = _growth(span, parts)
    edges = [1.0]
    for i in range(parts):
        edges.append(edges[-1] + ratio**i)
    whole = [int(e + 0.5) for e in edges]
    whole[-1] = num_timesteps
    widths = sorted(b - a for a, b in pairwise(whole))
    return [range(1), *(range(a, b) for a, b in pairwise(accumulate(widths, initial=1)))]


def _growth(span: int, parts: int) -> float:
    """r with 1 + r + ... + r^(parts - 1) = span, by bisection."""
    low, high = 1.0, float(max(span, 2))
    for _ in range(200):
        middle = (low + high) / 2
        total = 0.0
        for _ in range(parts):
            total = total * middle + 1
            if total > span:
                break
        low, high = (low, middle) if total > span else (middle, high)
    return low
