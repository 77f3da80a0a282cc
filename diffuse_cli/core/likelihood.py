"""The likelihood of samples: its variational bound, and its density by the probability flow.

The bound on the negative log-likelihood, in bits per dimension, is

    L = L_T + sum over t of L_t + L_0   (Ho et al. 2020, eq. 5)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.gaussian import Gaussian
from diffuse_cli.core.guidance import clip as clipped
from diffuse_cli.core.losses import bound_term, locate_timesteps
from diffuse_cli.core.process import Process
from diffuse_cli.core.registry import InvalidArgument

RISE = 0.2
"""Exponent of the cost per nat of log-SNR at high SNR, about SNR^RISE bits. At low SNR, where the
mean squared error is the data's variance, the cost is proportional to SNR (Kingma et al. 2021, eq.
13). Measured for the default (benchmarks/README.md)."""

EVEN = 0.01
"""Fraction of the visits that is the same for all timesteps, to limit the factors of the terms."""

TWICE = 12
"""Least number of visits with which the decoder's term gets two, because it is a third of the
variational bound and of its noise."""


@dataclass(frozen=True)
class Bits:
    """Bits per dimension of B samples: total = prior + terms.sum(1).

    Attributes:
        total, prior: shape (B,).
        terms: the term of each timestep, shape (B, T). The first is the decoder's.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor


def prior_bits(denoiser: Denoiser, x0: Tensor) -> Tensor:
    """Return L_T = KL(q(x_{T-1} | x_0) || N(0, 1)), shape (B,)."""
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
    """Yield the term of the bound, (B,), for each (time, noise). A time is an int or (B,) ints."""
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
    """Compute the variational bound over all timesteps of the denoiser's process.

    Args:
        x0: the samples (B, C, *size): levels over [-1, 1], or floats for a denoiser without levels.
        noise: `noise(t)` is the noise at t, shaped like x0.
        clip: whether to clamp the predicted x_0 to [-1, 1], which lowers the bound of levels.
    """
    draws = ((t, noise(t)) for t in range(denoiser.process.num_timesteps))
    terms = torch.stack(list(bound_terms(denoiser, x0, draws, clip=clip, **cond)), 1)
    prior = prior_bits(denoiser, x0)
    return Bits(prior + terms.sum(1), prior, terms)


def plan_visits(process: Process, n: int) -> Tensor:
    """Return the expected number of visits of each timestep among n, (T,) in float64, with sum n.

    A visit contributes its term divided by this number, so the estimate of the bound is unbiased.
    Its variance is smallest if all contributions are equal (importance sampling, as Nichol &
    Dhariwal 2021, eq. 18, use it in training). So the numbers follow the typical size of the terms,
    the integral over log-SNR of SNR^RISE (SNR / (1 + SNR))^(1 - RISE). They do not depend on the
    model, so that two models are compared at the same timesteps. Only the decoder's timestep gets
    more than one visit, two from n = `TWICE` on. With n >= T every timestep has one visit, and the
    estimate is the exact sum.

    Raises:
        InvalidArgument: fewer than two visits, which cannot reach both kinds of terms.
    """
    total = process.num_timesteps
    if n < min(2, total):
        raise InvalidArgument("must be at least 2", argument="n")
    if n >= total:
        return torch.ones(total, dtype=torch.float64)
    snrs = process.log_snr(torch.arange(total)).exp()
    between = (snrs[:-1] + snrs[1:]) / 2
    course = (snrs[:-1] ** RISE - snrs[1:] ** RISE) * (between / (1 + between)) ** (1 - RISE)
    fractions = (1 - EVEN) * course / course.sum() + EVEN / len(course)
    decoder = 2 if n >= TWICE else 1
    visits = _cap(fractions, n - decoder)
    return torch.cat([torch.tensor([decoder], dtype=torch.float64), visits])


def _cap(fractions: Tensor, total: float) -> Tensor:
    """Return min(1, c fractions), with the c for which it sums to `total`."""
    full = torch.zeros_like(fractions, dtype=torch.bool)
    while True:
        scaled = fractions * ((total - full.sum()) / fractions[~full].sum())
        more = ~full & (scaled >= 1)
        if not bool(more.any()):
            return scaled.where(~full, 1.0)
        full |= more


def draw_visits(expected: Tensor, places: Tensor) -> Tensor:
    """Return the timestep of each visit, int64 shaped like `places`, (..., n).

    Visit k is at k + `places`[..., k] along the cumulative sum of `expected`.

    Args:
        expected: the result of `plan_visits`.
        places: uniform random numbers, float64 in [0, 1).
    """
    starts = torch.arange(places.shape[-1], dtype=torch.float64)
    below = torch.nextafter(starts + 1, starts)  # to which a sum just below k + 1 would round up
    along = torch.minimum(starts + places, below)
    return locate_timesteps(expected.cumsum(0), along)


def strata(num_timesteps: int, n: int) -> list[range]:
    """Return {0}, then n - 1 strata of 1 ... T-1 whose widths grow geometrically from 1.

    The early terms of the bound, which are large and vary most, have the narrowest strata.
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
    """Return r with 1 + r + ... + r^(parts - 1) = span, by bisection."""
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


# -- probability flow -----------------------------------------------------------------------------

# The probability-flow equation (Song et al. 2021b, section 4.3) moves data at the first timestep to
# noise at the last, and the log density along a path falls by the divergence. With
# w = asinh(alpha / sigma), alpha = tanh w and sigma = 1 / cosh w, it is
#
#     dx / dw = -sigma v,  v = alpha eps - sigma x_0
#
# v is the velocity in the angle atan(sigma / alpha) (Salimans & Ho 2022, appendix D). At high SNR,
# w is half the log-SNR, up to a constant. At low SNR it is alpha / sigma, so few steps lead to
# noise.


def log_densities(
    denoiser: Denoiser, x0: Tensor, *, steps: int, probes: Sequence[Tensor], **cond: Any
) -> Iterator[Tensor]:
    """Yield the log density of samples after each step, (B,) in nats. Only the last is the result.

    The samples are scaled by alpha of the first timestep, where the equation starts, without
    noise. A sampler that ends there has this density. Its samples contain noise of variance
    r^2 = sigma^2 / alpha^2. For independent N(m, s^2) data the density is too low by (r / s)^4 / 4
    nats per dimension, if r is far below s. The equation ends in N(0, 1) at the last timestep with
    a signal.

    The steps are equal in w and of second order (explicit midpoint method). They have two
    evaluations, and a gradient for each probe.

    Args:
        x0: the samples (B, C, *size), floats with a density.
        probes: random tensors like x0 with E[e e^T] = 1, for example of signs. The divergence is
            the mean of e^T J e over them (Hutchinson 1990), so the result has no bias.
        cond: keywords for the network.

    Raises:
        InvalidArgument: no timestep has a signal.
    """
    process, dims = denoiser.process, x0[0].numel()
    signals = int((process.alpha_bars > 0).sum())
    if signals == 0:
        raise InvalidArgument("no timestep has a signal, so there is no path from data to noise")
    w, end = (math.asinh(math.exp(process.log_snr(t) / 2)) for t in (0, signals - 1))
    h, log_alpha = (w - end) / steps, math.log(math.tanh(w))

    def velocity(x: Tensor, w: float) -> Tensor:
        """Return -dx / dw."""
        alpha, sigma = math.tanh(w), 1 / math.cosh(w)
        prediction = denoiser(x, process.time_at(2 * math.log(math.sinh(w))), **cond)
        return sigma * (alpha * prediction.eps - sigma * prediction.x0)

    x, change = math.tanh(w) * x0, x0.new_full((len(x0),), dims * log_alpha)
    for _ in range(steps):
        with torch.no_grad():
            middle = x + h / 2 * velocity(x, w)
        with torch.enable_grad():
            slope = velocity(middle.requires_grad_(), w - h / 2)
            for probe in probes:
                (gradient,) = torch.autograd.grad(slope, middle, probe, retain_graph=True)
                change = change + h / len(probes) * (gradient * probe).flatten(1).sum(1)
        x, w = x + h * slope.detach(), w - h
        yield change - Gaussian(torch.zeros_like(x), 0.0).nll(x).flatten(1).sum(1)
