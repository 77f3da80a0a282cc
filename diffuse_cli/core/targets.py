"""Targets of the network, y = a x_0 + b eps, as the two coefficients (a, b).

Each entry takes alpha and sigma of x_t = alpha x_0 + sigma eps. It also takes c1 and c2, the
coefficients of x_0 and x_t in the posterior mean at (t, t-1) of the process that the network was
trained on. All of them are numbers or tensors. `Denoiser` inverts

    [ y   ]   [ a      b     ] [ x_0 ]
    [ x_t ] = [ alpha  sigma ] [ eps ]

for x_0 and eps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import Registry, entries_by_name

if TYPE_CHECKING:
    from torch import Tensor

    Number = float | Tensor

Target = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


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
