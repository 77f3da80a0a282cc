"""Training losses `(denoiser, x0, t, noise, weight, **cond) -> (B,)`, and their weightings.

A weighting w(snr) applies to the squared error of x_0. An error in the target y = a x_0 + b eps is
the error in x_0 times (a - b alpha / sigma). So the target's squared error has the weight w over
that factor squared: snr for eps, 1 for x_0, snr + 1 for v, (1 + sqrt(snr))^2 for flow, c1^2 for mu.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.gaussian import Gaussian
from diffuse_cli.core.registry import Registry, entries_by_name, lookup

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoiser, Prediction
    from diffuse_cli.core.process import Process

    Weight = Tensor | None

Loss = Callable[..., "Tensor"]


def simple(
    denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, weight: Weight = None, **cond: Any
) -> Tensor:
    """Mean squared error in the target, times `weight` (Ho et al. 2020, eq. 14). Shape (B,)."""
    prediction = denoiser(denoiser.process.diffuse(x0, t, noise), t, **cond)
    return squared_error(denoiser, prediction, x0, t, noise, weight)


def vlb(
    denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, weight: Weight = None, **cond: Any
) -> Tensor:
    """Return the term of the variational bound at t, in bits per dimension. Shape (B,)."""
    x_t = denoiser.process.diffuse(x0, t, noise)
    prediction = denoiser(x_t, t, **cond)
    term = bound_term(denoiser.process, prediction, x0, x_t, t, denoiser.levels)
    return term if weight is None else term * weight


def hybrid(
    denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, weight: Weight = None, **cond: Any
) -> Tensor:
    """`simple` + T / 1000 `vlb`, whose gradient reaches only the variance. Shape (B,).

    From Nichol & Dhariwal 2021, eq. 16, who use the sum L_vlb times 0.001. Here the bound is a mean
    over timesteps. `weight` applies to the simple part.
    """
    process = denoiser.process
    x_t = process.diffuse(x0, t, noise)
    prediction = denoiser(x_t, t, **cond)
    stopped = replace(prediction, x0=prediction.x0.detach())
    term = bound_term(process, stopped, x0, x_t, t, denoiser.levels)
    error = squared_error(denoiser, prediction, x0, t, noise, weight)
    return error + process.num_timesteps / 1000 * term


def squared_error(
    denoiser: Denoiser, prediction: Prediction, x0: Tensor, t: Tensor, noise: Tensor, weight: Weight
) -> Tensor:
    """Return the mean squared error in the target, times `weight`. Shape (B,)."""
    a, b = denoiser.target_at(t, like=x0)
    assert prediction.raw is not None
    error: Tensor = (prediction.raw - (a * x0 + b * noise)).square().flatten(1).mean(1)
    return error if weight is None else error * weight


def bound_term(
    process: Process,
    prediction: Prediction,
    x0: Tensor,
    x_t: Tensor,
    t: int | Tensor,
    levels: int | None = 256,
) -> Tensor:
    """Return L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and L_0 = -log p(x_0 | x_1).

    From Ho et al. 2020, eqs. 5 and 13, where t is one higher. In bits per dimension, shape (B,).
    p(x_0 | x_1) is the probability of one of `levels` bins, or a density if `levels` is None.
    """
    from diffuse_cli.core.process import expand_batch  # which imports torch

    truth = process.posterior(x0, x_t, t)
    mean = process.posterior(prediction.x0, x_t, t).mean
    log_var = truth.log_var if prediction.log_var is None else prediction.log_var(t, None)
    model = Gaussian(mean, log_var)
    if isinstance(t, int):
        nats = _decoder_nll(model, x0, levels) if t == 0 else truth.kl(model)
    else:
        first = expand_batch((t == 0).to(x0.device), x0)
        nats = _decoder_nll(model, x0, levels).where(first, truth.kl(model))
    return nats.flatten(1).mean(1) / math.log(2)


def _decoder_nll(model: Gaussian, x0: Tensor, levels: int | None) -> Tensor:
    return model.nll(x0) if levels is None else model.discrete_nll(x0, levels=levels)


LOSSES: Registry[Loss] = Registry("losses", {"simple": simple, "vlb": vlb, "hybrid": hybrid})

OF_LEARNED = frozenset({"hybrid"})
"""Losses that need a learned variance. With a fixed variance they have the gradient of `simple`."""


def _none(snr: Tensor) -> None:
    """The plain squared error of the target."""


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(snr, gamma) (Hang et al. 2023, eq. 6)."""
    return snr.clamp(max=gamma)


def sigmoid(snr: Tensor, bias: float = 2.0) -> Tensor:
    """snr sigmoid(bias - log snr) over uniform log-SNR (Hoogeboom et al. 2024), times
    cosh(log snr / 2): under the schedule `cosine`, log-SNR has a density proportional to its sech.

    v is weighted by sech((log snr - bias) / 2) times a constant.
    """
    return snr.sqrt() * (1 + snr) / (1 + snr * math.exp(-bias)) / 2


def p2(snr: Tensor) -> Tensor:
    """snr / (1 + snr): for eps, the weight 1 / (1 + snr) of Choi et al. 2022, eq. 8, k = 1."""
    return snr / (1 + snr)


def flow(snr: Tensor) -> Tensor:
    """(1 + sqrt(snr))^2: the squared error of the velocity eps - x_0, independent of the target
    (Lipman et al. 2023, eq. 23)."""
    return (1 + snr.sqrt()) ** 2


def logit_normal(snr: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """`flow` times the density of u = 1 / (1 + sqrt(snr)) where logit(u) is N(mean, std^2).

    In expectation, it is equal to drawing u from this density under the schedule `flow` (Esser et
    al. 2024, eq. 19).
    """
    logit = -snr.log() / 2
    u, z = logit.sigmoid(), (logit - mean) / std
    density = (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * std * u * (1 - u))
    return flow(snr) * density.nan_to_num(0.0, posinf=0.0)  # its limit at SNR 0


def jit(snr: Tensor) -> Tensor:
    """`logit_normal` at the noisier times of Li & He 2025, whose t is 1 - u."""
    return logit_normal(snr, mean=0.8, std=0.8)


WEIGHTINGS: Registry[Callable[[Tensor], Tensor | None]] = Registry(
    "weightings", {"none": _none, **entries_by_name(min_snr, sigmoid, p2, flow, logit_normal, jit)}
)


def loss(
    denoiser: Denoiser,
    x0: Tensor,
    name: str = "simple",
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | None = None,
    weighting: str = "none",
    **cond: Any,
) -> Tensor:
    """Compute a loss (B,) for training. Timesteps and noise are drawn unless you pass them.

    Args:
        name: a name in `LOSSES`.
        t, noise: the timesteps (B,), by default uniform, and the noise, shaped like x0.
        seed: the seed of both. By default they come from PyTorch's global generator.
        weighting: a name in `WEIGHTINGS`.
        cond: keywords for the network.

    Raises:
        InvalidArgument: no such loss or weighting.
    """
    import torch

    draws = None if seed is None else torch.Generator().manual_seed(seed)
    if t is None:
        t = torch.randint(denoiser.process.num_timesteps, (len(x0),), generator=draws)
    if noise is None:
        noise = torch.randn(x0.shape, generator=draws).to(x0)
    weight = weights(weighting, denoiser)
    if weight is not None:
        weight = weight[t.cpu()].to(x0.dtype).to(x0.device)
    return lookup(LOSSES, name, "loss")(denoiser, x0, t.to(x0.device), noise, weight, **cond)


def weights(name: str, denoiser: Denoiser) -> Tensor | None:
    """Return the weight of the target's squared error at every timestep, (T,) in float64, or None.

    A last weight of 0, at SNR 0, is replaced by the mean of the others. Otherwise the timestep at
    which sampling starts would not be trained.

    Raises:
        InvalidArgument: no such weighting.
    """
    alpha_bars = denoiser.process.alpha_bars
    snr = alpha_bars / (1 - alpha_bars)
    weight = lookup(WEIGHTINGS, name, "weighting")(snr)
    if weight is None:
        return None
    a, b = denoiser.coefficients
    weight = weight / (a - b * snr.sqrt()) ** 2
    if float(weight[-1]) == 0 and len(weight) > 1:
        weight[-1] = weight[:-1].mean()
    return weight
