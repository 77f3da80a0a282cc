"""Which timesteps are trained: a probability for each t = 0 ... T-1.

A loss at a t drawn with probability p_t is divided by T p_t, which keeps its expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 0.001
"""The uniform share of `importance`: no timestep is forgotten."""

EVEN = 0.1
"""The uniform share of `weight`: no loss is divided by less."""


class History:
    """The last losses of every timestep.

    Args:
        num_timesteps: T.
        keep: losses kept per timestep.

    Attributes:
        losses: float32 (T, keep), on the CPU, in no order.
        counts: int64 (T,), losses seen.
    """

    def __init__(self, num_timesteps: int, keep: int) -> None:
        import torch

        self.keep = keep
        self.losses = torch.zeros(num_timesteps, keep)
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64)

    def add(self, times: list[int], losses: list[float]) -> None:
        """Add losses at their timesteps, each over the oldest."""
        for t, loss in zip(times, losses, strict=True):
            self.losses[t, int(self.counts[t]) % self.keep] = loss
            self.counts[t] += 1

    def tensors(self) -> dict[str, Tensor]:
        """The state, for a checkpoint; empty if nothing is kept."""
        return {"losses": self.losses, "counts": self.counts} if self.keep else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned."""
        if self.keep:
            self.losses.copy_(tensors["losses"])
            self.counts.copy_(tensors["counts"])


@dataclass(frozen=True)
class TimestepDraw:
    """A way to draw timesteps.

    Attributes:
        probabilities: (T,) in float64, of sum 1, from the losses so far and the weight of each
            timestep's loss, (T,) or None.
        keep: losses per timestep that it looks back on.
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
    own = weight.double().to(even.device)
    return (1 - EVEN) * own / own.sum() + EVEN * even


def importance(history: History, weight: Tensor | None) -> Tensor:
    """p_t in proportion to sqrt(E[L_t^2]) (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every timestep has `keep` losses.
    """
    if int(history.counts.min()) < history.keep:
        return uniform(history, weight)
    size = history.losses.double().square().mean(1).sqrt()
    return (1 - FLOOR) * size / size.sum() + FLOOR / len(size)


TIMESTEP_DRAWS: Registry[TimestepDraw] = Registry(
    "timestep_draws",
    {
        "uniform": TimestepDraw(uniform),
        "importance": TimestepDraw(importance, keep=10),
        "weight": TimestepDraw(by_weight),
    },
)


def choose(probabilities: Tensor, u: Tensor) -> Tensor:
    """The timesteps, int64, at which the cumulative probabilities pass each u in [0, 1)."""
    import torch

    edges = probabilities.cumsum(0).to(u.dtype).to(u.device)
    return torch.searchsorted(edges, u, right=True).clamp(max=len(edges) - 1)
