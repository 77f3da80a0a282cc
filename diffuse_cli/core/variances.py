"""The log-variance of the reverse process.

Each entry takes `StepCoefficients`, with log beta and log beta-tilde of the step from t to s, and
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

Variance = Callable[["StepCoefficients", Any], Any]


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
