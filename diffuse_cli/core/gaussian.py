"""Diagonal Gaussians, and the likelihood of levels and of floats under one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MIN_PROBABILITY = 1e-12


def tanh_cdf(z: Tensor) -> Tensor:
    """The standard normal distribution function, approximated with tanh (Page 1977)."""
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).tanh())


def exact_cdf(z: Tensor) -> Tensor:
    """The standard normal distribution function."""
    return 0.5 * (1 + (z / math.sqrt(2)).erf())


@dataclass(frozen=True, init=False)
class Gaussian:
    """N(mean, exp(log_var)), elementwise; `log_var` is a number or broadcasts against `mean`."""

    mean: Tensor
    log_var: Tensor

    def __init__(self, mean: Tensor, log_var: Tensor | float) -> None:
        object.__setattr__(self, "mean", mean)
        tensor = log_var if hasattr(log_var, "exp") else mean.new_full((), float(log_var))
        object.__setattr__(self, "log_var", tensor)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(log_var / 2) * noise."""
        return self.mean + (0.5 * self.log_var).exp() * noise

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) of each element, in nats."""
        log_ratio = self.log_var - other.log_var
        distance = (self.mean - other.mean) ** 2 * (-other.log_var).exp()
        return 0.5 * (log_ratio.exp() - 1 - log_ratio + distance)

    def nll(self, x: Tensor) -> Tensor:
        """Negative log-density of each element, in nats."""
        squared = (x - self.mean) ** 2 * (-self.log_var).exp()
        return 0.5 * (math.log(2 * math.pi) + self.log_var + squared)

    def discrete_nll(
        self, x: Tensor, cdf: Callable[[Tensor], Tensor] = tanh_cdf, levels: int = 256
    ) -> Tensor:
        """Negative log-probability of each element's bin, in nats (Ho et al. 2020, eq. 13).

        `x` holds levels 2k / (levels - 1) - 1; bins are 2 / (levels - 1) wide, the outermost
        reach to infinity. Probabilities are at least 1e-12.
        """
        centred, half = x - self.mean, 1 / (levels - 1)
        outermost = 1 - half / 4
        inverse_std = (-0.5 * self.log_var).exp()
        below = cdf((centred - half) * inverse_std) * (x >= -outermost)
        above = cdf((centred + half) * inverse_std)
        probability = above.where(x <= outermost, above.new_ones(())) - below
        return -probability.clamp(min=MIN_PROBABILITY).log()
