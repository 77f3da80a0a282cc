"""Training losses `(denoiser, x0, t, noise, weight, **cond) -> (B,)`, weightings, timestep draws.

A weighting w(snr) applies to the squared error of x_0. An error in the target y = a x_0 + b eps is
the error in x_0 times (a - b alpha / sigma). So the target's squared error has the weight w over
that factor squared: snr for eps, 1 for x_0, snr + 1 for v, (1 + sqrt(snr))^2 for flow, c1^2 for mu.

The loss at a timestep t that is drawn with probability p_t is divided by T p_t, which preserves its
expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import Registry, entries_by_name, lookup
from diffuse_cli.core.space import expand_batch

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoiser, Prediction
    from diffuse_cli.core.gaussian import Gaussian
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
    truth = process.posterior(x0, x_t, t)
    model = process.posterior(prediction.x0, x_t, t)
    if prediction.log_var is not None:
        model = replace(model, log_var=prediction.log_var(t, None))
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
        t: the timesteps (B,), by default uniform.
        noise: the noise, shaped like x0.
        seed: the seed of both. By default they come from PyTorch's global generator.
        weighting: a name in `WEIGHTINGS`.
        cond: keywords for the network.

    Raises:
        InvalidArgument: no such loss or weighting.
    """
    import torch

    draws = None if seed is None else torch.Generator().manual_seed(seed)
    if t is None:
        total = denoiser.process.num_timesteps
        t = torch.randint(total, (len(x0),), generator=draws, device="cpu")
    if noise is None:
        noise = torch.randn(x0.shape, generator=draws, device="cpu").to(x0)
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


# -- timestep draws -------------------------------------------------------------------------------

FLOOR = 0.001
"""Uniform fraction of `importance`, so that every timestep is trained."""

EVEN = 0.1
"""Uniform fraction of `weight`, the least number by which a loss is divided."""


class History:
    """Last losses of every timestep.

    Args:
        num_timesteps: T.
        keep: the number of losses to keep per timestep.

    Attributes:
        losses: the last losses, float32 (T, keep) on the CPU, in no particular order.
        counts: the number of losses so far, int64 (T,).
    """

    def __init__(self, num_timesteps: int, keep: int) -> None:
        import torch

        self.keep = keep
        self.losses = torch.zeros(num_timesteps, keep)
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64)

    def add(self, times: list[int], losses: list[float]) -> None:
        """Add losses at their timesteps, replacing the oldest."""
        for t, loss in zip(times, losses, strict=True):
            self.losses[t, int(self.counts[t]) % self.keep] = loss
            self.counts[t] += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint, empty if no losses are kept."""
        return {"losses": self.losses, "counts": self.counts} if self.keep else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the result of `tensors`."""
        if self.keep:
            self.losses.copy_(tensors["losses"])
            self.counts.copy_(tensors["counts"])


@dataclass(frozen=True)
class TimestepDraw:
    """Method to draw timesteps.

    Attributes:
        probabilities: a function of the losses so far and of the weight of each timestep's loss,
            (T,) or None. It returns probabilities, (T,) in float64.
        keep: the number of losses per timestep that it needs.
    """

    probabilities: Callable[[History, Tensor | None], Tensor]
    keep: int = 0


def uniform(history: History, weight: Tensor | None) -> Tensor:
    """The same for every timestep (Ho et al. 2020, algorithm 1)."""
    return history.counts.double().fill_(1 / len(history.counts))


def by_weight(history: History, weight: Tensor | None) -> Tensor:
    """In proportion to the weight of the loss, so that each image counts about the same."""
    even = uniform(history, weight)
    if weight is None:
        return even
    weight = weight.double().to(even.device)
    return (1 - EVEN) * weight / weight.sum() + EVEN * even


def importance(history: History, weight: Tensor | None) -> Tensor:
    """p_t in proportion to sqrt(E[L_t^2]) (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every timestep has `keep` losses.
    """
    if int(history.counts.min()) < history.keep:
        return uniform(history, weight)
    size = history.losses.double().square().mean(1).sqrt()
    return (1 - FLOOR) * size / size.sum().clamp(min=1e-300) + FLOOR / len(size)


TIMESTEP_DRAWS: Registry[TimestepDraw] = Registry(
    "timestep_draws",
    {
        "uniform": TimestepDraw(uniform),
        "importance": TimestepDraw(importance, keep=10),
        "weight": TimestepDraw(by_weight),
    },
)


def locate_timesteps(edges: Tensor, u: Tensor) -> Tensor:
    """Return the timesteps, int64, whose `edges`, cumulative probabilities, pass each u < 1."""
    import torch

    return torch.searchsorted(edges.to(u), u, right=True).clamp(max=len(edges) - 1)
