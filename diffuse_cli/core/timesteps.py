"""Which timesteps are trained: a probability for each t = 0 ... T-1, from the losses seen so far.

A loss at t that was drawn with probability p_t is divided by T p_t, so that every way of drawing
has the same expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 0.001
"""The part of `importance` that stays uniform, so that no timestep is forgotten."""


class History:
    """The last losses of every timestep.

    Args:
        num_timesteps: T.
        keep: losses kept for each timestep; with 0 nothing is.

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
        """Note losses at their timesteps, each in the place of the oldest."""
        for t, loss in zip(times, losses, strict=True):
            self.losses[t, int(self.counts[t]) % self.keep] = loss
            self.counts[t] += 1

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, for a checkpoint."""
        return {"losses": self.losses, "counts": self.counts} if self.keep else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        if self.keep:
            self.losses.copy_(tensors["losses"])
            self.counts.copy_(tensors["counts"])


@dataclass(frozen=True)
class TimestepDraw:
    """A way to draw timesteps.

    Attributes:
        probabilities: (T,) in float64, of sum 1, from the history.
        keep: how many losses of each timestep it looks back on.
    """

    probabilities: Callable[[History], Tensor]
    keep: int = 0


def uniform(history: History) -> Tensor:
    """Every timestep alike (Ho et al. 2020, algorithm 1)."""
    return history.counts.double().fill_(1 / len(history.counts))


def importance(history: History) -> Tensor:
    """p_t in proportion to sqrt(E[L_t^2]) (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every timestep has all the losses that are kept.
    """
    if int(history.counts.min()) < history.keep:
        return uniform(history)
    size = history.losses.double().square().mean(1).sqrt()
    return (1 - FLOOR) * size / size.sum() + FLOOR / len(size)


TIMESTEP_DRAWS: Registry[TimestepDraw] = Registry(
    "timestep_draws",
    {
        "uniform": TimestepDraw(uniform),
        "importance": TimestepDraw(importance, keep=10),
    },
)


def choose(probabilities: Tensor, u: Tensor) -> Tensor:
    """The timesteps at which the cumulated probabilities pass u in [0, 1), int64 like u."""
    import torch

    edges = probabilities.cumsum(0).to(u.dtype).to(u.device)
    return torch.searchsorted(edges, u, right=True).clamp(max=len(edges) - 1)
