"""Diagonal Gaussians, and the likelihood of levels and of floats under one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MIN_PROBABILITY = 1e-12
"""Least probability of a bin with 256 levels. It shrinks in proportion to the bin's width."""


def tanh_cdf(z: Tensor) -> Tensor:
    """Return the standard normal distribution function, approximated with tanh (Page 1977).

    It is precise far below 0, where it is near 0, but not far above, where it is near 1.
    """
    # (1 + tanh u) / 2
    return (2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).sigmoid()


@dataclass(frozen=True, init=False)
class Gaussian:
    """Elementwise N(mean, exp(log_var)); `log_var` is a number or broadcasts against `mean`."""

    mean: Tensor
    log_var: Tensor

    def __init__(self, mean: Tensor, log_var: Tensor | float) -> None:
        object.__setattr__(self, "mean", mean)
        tensor = log_var if hasattr(log_var, "exp") else mean.new_full((), float(log_var))
        object.__setattr__(self, "log_var", tensor)

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + exp(log_var / 2) * noise."""
        return self.mean + (0.5 * self.log_var).exp() * noise

    def kl(self, other: Gaussian) -> Tensor:
        """Return KL(self || other) of each element, in nats."""
        log_ratio = self.log_var - other.log_var
        distance = (self.mean - other.mean) ** 2 * (-other.log_var).exp()
        return 0.5 * (log_ratio.expm1() - log_ratio + distance)

    def nll(self, x: Tensor) -> Tensor:
        """Return the negative log-density of each element, in nats."""
        squared = (x - self.mean) ** 2 * (-self.log_var).exp()
        return 0.5 * (math.log(2 * math.pi) + self.log_var + squared)

    def discrete_nll(self, x: Tensor, levels: int = 256) -> Tensor:
        """Return the negative log-probability of each element's bin (Ho et al. 2020, eq. 13).

        In nats. `x` holds levels 2k / (levels - 1) - 1. Bins are 2 / (levels - 1) wide, and the
        outermost bins reach to infinity. Probabilities are at least `MIN_PROBABILITY`.
        """
        centered, half = x - self.mean, 1 / (levels - 1)
        inverse_std = (-0.5 * self.log_var).exp()
        # By symmetry each bin is moved below the mean. There both cdf values are small, so their
        # difference is precise. Above the mean, values near 1 would cancel for narrow tail bins.
        outermost = x.abs() > 1 - half / 2
        inside = -centered.abs()
        above = tanh_cdf((half - centered * x.sign()).where(outermost, inside + half) * inverse_std)
        below = tanh_cdf((inside - half) * inverse_std) * ~outermost
        min_probability = MIN_PROBABILITY * min(1.0, 256 / levels)
        return -(above - below).clamp(min=min_probability).log()


class StepCoefficients(NamedTuple):
    """Coefficients of a step from t to s, s < t: numbers, or tensors that broadcast.

    Attributes:
        alpha, sigma: coefficients of x_t = alpha x_0 + sigma eps.
        alpha_s, sigma_s: the same at s.
        c1, c2: coefficients of the posterior mean c1 x_0 + c2 x_t (Ho et al. 2020, eq. 7).
        log_beta: the log-variance log(1 - alpha_bar_t / alpha_bar_s) of q(x_t | x_s).
        log_beta_tilde: the log-variance of the posterior q(x_s | x_t, x_0). At s = -1, where that
            variance is 0, it is the value of the process's second timestep.
        first: 1 at s = -1, else 0.
    """

    alpha: Any
    sigma: Any
    alpha_s: Any
    sigma_s: Any
    c1: Any
    c2: Any
    log_beta: Any
    log_beta_tilde: Any
    first: Any
