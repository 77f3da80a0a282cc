"""The network's output: the target it predicts, and the log-variance of the reverse process.

A target is y = a x_0 + b eps. Its entry returns the coefficients (a, b), from alpha and sigma of
x_t = alpha x_0 + sigma eps, and from c1 and c2, the coefficients of x_0 and x_t in the posterior
mean at (t, t-1) of the process that the network was trained on. All of them are numbers or tensors.
`Denoiser` inverts

    [ y   ]   [ a      b     ] [ x_0 ]
    [ x_t ] = [ alpha  sigma ] [ eps ]

for x_0 and eps.

A variance takes `StepCoefficients`, with log beta and log beta-tilde of the step from t to s, and
`raw`: the second half of the network's output (`LEARNED`), the mean squared error of x_0 at t
(`MEASURED`), or None. At the first timestep beta-tilde is 0, and `StepCoefficients.log_beta_tilde`
holds the value of the second timestep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import Registry, entries_by_name

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.gaussian import StepCoefficients

    Number = float | Tensor

Target = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
Variance = Callable[["StepCoefficients", Any], Any]


def eps(alpha: Number, sigma: Number, c1: Number, c2: Number) -> tuple[Number, Number]:
    """The noise (Ho et al. 2020, eq. 12)."""
    return 0.0, 1.0


def x0(alpha: Number, sigma: Number, c1: Number, c2: Number) -> tuple[Number, Number]:
    """The clean image."""
    return 1.0, 0.0


def v(alpha: Number, sigma: Number, c1: Number, c2: Number) -> tuple[Number, Number]:
    """The velocity alpha eps - sigma x_0 (Salimans & Ho 2022, section 4)."""
    return -sigma, alpha


def mu(alpha: Number, sigma: Number, c1: Number, c2: Number) -> tuple[Number, Number]:
    """The posterior mean c1 x_0 + c2 x_t (Ho et al. 2020, eq. 7)."""
    return c1 + c2 * alpha, c2 * sigma


def flow(alpha: Number, sigma: Number, c1: Number, c2: Number) -> tuple[float, float]:
    """The velocity eps - x_0 of the straight path (Lipman et al. 2023, eq. 23; Liu et al. 2023)."""
    return -1.0, 1.0


def has_noise(target: str) -> bool:
    """Whether a network for this target predicts noise."""
    return bool(TARGETS[target](0.6, 0.8, 0.1, 0.2)[1])


STEPWISE = frozenset({"mu"})
"""Targets that depend on the previous timestep, so that only whole timesteps define them."""

TARGETS: Registry[Target] = Registry("targets", entries_by_name(eps, x0, v, flow, mu))


# -- variances ------------------------------------------------------------------------------------


def small(pair: StepCoefficients, raw: Tensor | None) -> Any:
    """beta-tilde, the variance of the posterior: exact for data that is a single point."""
    return pair.log_beta_tilde


def large(pair: StepCoefficients, raw: Tensor | None) -> Any:
    """beta: exact for standard normal data (Ho et al. 2020, section 3.2)."""
    return pair.log_beta + pair.first * (pair.log_beta_tilde - pair.log_beta)


def learned(pair: StepCoefficients, raw: Tensor | None) -> Any:
    """f log beta + (1 - f) log beta-tilde, f = (raw + 1) / 2 (Nichol & Dhariwal 2021, eq. 15).

    `raw`, the second half of the network's channels, is not bounded.
    """
    assert raw is not None
    f = (raw + 1) / 2
    return f * pair.log_beta + (1 - f) * pair.log_beta_tilde


def optimal(pair: StepCoefficients, raw: Any) -> Any:
    """beta-tilde + c1^2 E[(x_0 - estimate)^2]: the best number for each step (Bao et al. 2022)."""
    variance = math.e**pair.log_beta_tilde + (1 - pair.first) * pair.c1**2 * raw
    return log(variance)


def log(value: Any) -> Any:
    """Return the logarithm of a number or tensor."""
    return value.log() if hasattr(value, "log") else math.log(value)


LEARNED, MEASURED = frozenset({"learned"}), frozenset({"optimal"})
"""Variances that the network learns, with twice the output channels, and variances that need the
errors of a trained network."""

VARIANCES: Registry[Variance] = Registry(
    "variances", entries_by_name(small, large, learned, optimal)
)


def output_channels(variance: str, channels: int) -> int:
    """Return the number of output channels of a network for samples of `channels` channels."""
    return channels * 2 if variance in LEARNED else channels
