"""Distributions of the training timesteps t = 0 ... T-1, and spacings of samplers.

The loss at a t with probability p_t is divided by T p_t, which preserves its expectation.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import Registry, entries_by_name

if TYPE_CHECKING:
    from torch import Tensor


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


def choose(edges: Tensor, u: Tensor) -> Tensor:
    """Return the timesteps, int64, whose `edges`, cumulative probabilities, pass each u < 1."""
    import torch

    return torch.searchsorted(edges.to(u), u, right=True).clamp(max=len(edges) - 1)


# -- spacings -------------------------------------------------------------------------------------

# Timesteps of a sampler: `(n, log_snrs) -> times`, descending.
#
# `log_snrs` holds log(alpha^2 / sigma^2) for t = 0 ... T-1, so its length is T.

Spacing = Callable[[int, Sequence[float]], list[int] | list[float]]


def trailing(n: int, log_snrs: Sequence[float]) -> list[int]:
    """From T-1, pure noise, in steps of T/n, rounded (Lin et al. 2024, table 2)."""
    size = len(log_snrs)
    return [round(size - i * size / n) - 1 for i in range(n)]


def leading(n: int, log_snrs: Sequence[float]) -> list[int]:
    """Multiples of T // n down to 0 (Song et al. 2021a): does not start at T-1."""
    stride = len(log_snrs) // n
    return [i * stride for i in reversed(range(n))]


def linspace(n: int, log_snrs: Sequence[float]) -> list[int]:
    """n evenly spaced timesteps from T-1 to 0, both included."""
    last = len(log_snrs) - 1
    return [round(last * (1 - i / max(n - 1, 1))) for i in range(n)]


def karras(n: int, log_snrs: Sequence[float], rho: float = 7.0) -> list[float]:
    """sigma^(1/rho) evenly spaced, sigma = exp(-log_snr / 2) (Karras et al. 2022, eq. 5).

    Times are real numbers, with interpolated log-SNR. If sigma is infinite at T-1, that time comes
    first, and the others are spaced over the rest.
    """
    if log_snrs[-1] == -math.inf:
        noise = [len(log_snrs) - 1.0]
        return noise + karras(n - 1, log_snrs[:-1], rho) if n > 1 else noise
    first, last = (math.exp(-value / 2 / rho) for value in (log_snrs[-1], log_snrs[0]))
    ramp = [first + (last - first) * i / max(n - 1, 1) for i in range(n)]
    return [find_time(-2 * rho * math.log(root), log_snrs) for root in ramp]


def early(n: int, log_snrs: Sequence[float], rho: float = 0.6) -> list[int]:
    """Most steps at high noise: the angle atan(sigma / alpha) falls as (1 - i/n)^rho from T-1 on.

    Times are the nearest timesteps, each at most once. Under `cosine` the angle is proportional to
    t, and rho = 1 is trailing. Details narrower than a pixel become too weak
    (benchmarks/README.md, "Sampling").
    """
    return _falling(n, [math.atan(math.exp(-value / 2)) for value in log_snrs], rho)


def wide(n: int, log_snrs: Sequence[float]) -> list[int]:
    """Return trailing times of a `cosine` whose log-SNR is 1 + 5/n times as wide, around -1.

    Compared with `trailing`, more steps are at high noise, where structures wider than a pixel take
    shape, and at low noise, where details do. Times are the nearest timesteps, each at most once.
    """
    width = 1 + 5 / n
    return _falling(n, [math.atan(math.exp(-(value + 1) / 2 / width)) for value in log_snrs])


def _falling(n: int, angles: Sequence[float], rho: float = 1.0) -> list[int]:
    """Return timesteps from the last one down whose angles fall as (1 - i/n)^rho."""
    times: list[int] = []
    for i in range(n):
        angle = angles[-1] * (1 - i / n) ** rho
        above = bisect_left(angles, angle)
        nearest = min((above - 1, above), key=lambda t: abs(angles[max(t, 0)] - angle))
        highest = times[-1] - 1 if times else len(angles) - 1
        times.append(min(max(nearest, n - 1 - i), highest))
    return times


def find_time(log_snr: float, log_snrs: Sequence[float]) -> float:
    """Return the real time at which the descending `log_snrs` pass `log_snr`."""
    rising = [-value for value in log_snrs]
    if len(rising) == 1:
        return 0.0
    i = min(max(bisect_left(rising, -log_snr), 1), len(rising) - 1)
    if math.isinf(rising[i]):  # at SNR 0, to which nothing can be interpolated
        return float(i) if log_snr == -math.inf else i - 1.0
    time = i - (rising[i] + log_snr) / (rising[i] - rising[i - 1])
    return min(max(time, 0.0), len(rising) - 1.0)


SPACINGS: Registry[Spacing] = Registry(
    "spacings", entries_by_name(trailing, leading, linspace, karras, early, wide)
)
