"""The variance of the reverse process, as its logarithm.

Each entry takes a `Pair` of the process, which knows log beta and log beta-tilde of the step from
t to s, and what the network says beside its prediction, or None. At the first timestep beta-tilde
is 0; `Pair.log_beta_tilde` is there that of the process's second timestep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.process import Pair

Variance = Callable[["Pair", "Tensor | None"], Any]


def small(pair: Pair, raw: Tensor | None) -> float | Tensor:
    """beta-tilde, the variance of the posterior: right for data that is one point."""
    log_var: float | Tensor = pair.log_beta_tilde
    return log_var


def large(pair: Pair, raw: Tensor | None) -> float | Tensor:
    """beta: right for data that is standard normal (Ho et al. 2020, section 3.2)."""
    log_var: float | Tensor = pair.log_beta + pair.first * (pair.log_beta_tilde - pair.log_beta)
    return log_var


def learned(pair: Pair, raw: Tensor | None) -> Tensor:
    """f log beta + (1 - f) log beta-tilde, f = (raw + 1) / 2 (Nichol & Dhariwal 2021, eq. 15).

    `raw` is the second half of the network's channels, not bounded. At the first timestep the
    upper end is log beta_0 and the lower one `Pair.log_beta_tilde`.
    """
    assert raw is not None
    f = (raw + 1) / 2
    log_var: Tensor = f * pair.log_beta + (1 - f) * pair.log_beta_tilde
    return log_var


LEARNED = frozenset({"learned"})
"""Variances that the network learns: it puts out as many channels again for them."""

VARIANCES: Registry[Variance] = Registry(
    "variances",
    {
        "small": small,
        "large": large,
        "learned": learned,
    },
)


def channels_out(variance: str, channels: int) -> int:
    """Channels that a network for images of `channels` puts out under a variance."""
    return channels * 2 if variance in LEARNED else channels
