"""Consistency: a denoiser whose estimate of x_0 is the same all along a path.

Samples move along the probability flow from noise to data. A consistency function gives the end of
the path from any x_t on it, so one evaluation draws a sample (Song et al. 2023b). It is x at
sigma = 0; the estimate of x_0 of a `Denoiser` is so for every target that determines x_0, under v
as alpha x - sigma v. So a trained denoiser is where its training starts, with no other network.

`loss` asks that the estimates at two times agree, t and an earlier one s: first clean data, which
is the loss of a denoiser, and closer to t from stage to stage (Geng et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.solvers import State, Times

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.core.process import Process
    from diffuse_cli.core.solvers import Noise

STAGES = 8
"""How often the distance of the two times is halved."""

STEEP, NEAR = 8.0, 1.0
"""k and b of n(r) = 1 + k sigmoid(-b r), which keeps s further from t where there is little noise
(Geng et al. 2025, sec. 3)."""

SOFT = 0.00054
"""c of the pseudo-Huber distance sqrt(|x|^2 + c^2 D) - c sqrt(D) of D dimensions (Song & Dhariwal
2024, sec. 3.3); here over sqrt(D), as a mean."""


@dataclass(frozen=True)
class Pairing:
    """With which time s < t each timestep t is compared.

    Attributes:
        earlier: s, int64 (T,) on the CPU; -1 is clean data.
        weight: of the distance at t, one over the angle from s to t, float64 (T,); the angle is
            atan(sigma / alpha), pi / 2 from clean data to pure noise.
    """

    earlier: Tensor
    weight: Tensor


def pairing(process: Process, stage: int) -> Pairing:
    """The times of a stage, 0 to `STAGES` - 1: r_s = r_t (1 - n(r_t) / 2^(stage + 1)), at least 0,
    with r = sigma / alpha (Geng et al. 2025, sec. 3), rounded down to a timestep before t."""
    import torch

    r = torch.exp(-process.log_snr(torch.arange(process.num_timesteps)) / 2)
    bent = 1 + STEEP * torch.sigmoid(-NEAR * r)
    wanted = r * (1 - bent / 2 ** (stage + 1))
    wanted = wanted.nan_to_num(nan=math.inf)  # r is infinite at SNR 0
    before = torch.arange(process.num_timesteps) - 1
    earlier = torch.minimum(torch.searchsorted(r, wanted.contiguous(), right=True) - 1, before)
    angle = torch.atan(r)
    at_s = torch.where(earlier < 0, 0.0, angle[earlier.clamp(min=0)])
    return Pairing(earlier, 1 / (angle - at_s))


def loss(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    weight: Tensor | None = None,
    *,
    earlier: Tensor | None = None,
    teacher: Denoise | None = None,
    **cond: Any,
) -> Tensor:
    """The distance of the estimates of x_0 at t and at an earlier time, times `weight`. Shape (B,).

    x_s is the same sample under the same noise (Song et al. 2023b, alg. 3), or where a step of
    `ddim` by a teacher leads (their alg. 2). No gradient goes through the estimate at s.

    Args:
        earlier: s, (B,), each before its t; -1 is clean data. By default the timestep before t.
        teacher: another denoiser of the process, such as a guided one. Without it there is none.
    """
    import torch

    process = denoiser.process
    s = (t - 1 if earlier is None else earlier).to(x0.device)
    x_t = process.diffuse(x0, t, noise)
    predicted = denoiser(x_t, t, **cond).x0
    clean, inside = _spread(s < 0, x0), s.clamp(min=0)
    with torch.no_grad():
        ends = (x0, noise)
        if teacher is not None:
            step = teacher(x_t, t, **cond)
            ends = (step.x0, step.eps)
        x_s = process.diffuse(ends[0], inside, ends[1])
        wanted = torch.where(clean, ends[0], denoiser(x_s, inside, **cond).x0)
    distance = ((predicted - wanted).square().flatten(1).mean(1) + SOFT**2).sqrt() - SOFT
    return distance if weight is None else distance * weight


def _spread(values: Tensor, like: Tensor) -> Tensor:
    from diffuse_cli.core.process import spread  # which imports torch

    return spread(values, like)


def sample(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Each step goes to x_0, and back up to the next time with fresh noise (Song et al. 2023b, alg.
    1). Exact at any number of steps for a consistency function, and for nothing else."""
    for k, (t, s) in enumerate(pairwise([*times, end])):
        x0 = denoise(x, t).x0
        x = x0 if s < 0 else process.diffuse(x0, s, noise(k))
        yield State(x, x0, s)
