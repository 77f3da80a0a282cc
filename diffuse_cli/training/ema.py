"""The average of the weights that samples are drawn from."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

POWER = 0.75
EAGER, EVERY = 64, 4
"""The average moves after each of the first `EAGER` steps, then after every fourth."""


def decay_at(update: int, largest: float) -> float:
    """The decay of the n-th update: min(largest, 1 - (n + 1)^-0.75), 0 at the first.

    A growing memory: early in a run the average forgets the random start, so that a short run
    already samples from sensible weights.
    """
    decay: float = 1 - (update + 1) ** -POWER
    return min(largest, decay)


def due(done: int, steps: int) -> bool:
    """Whether the average moves after `done` of `steps` steps, whatever else happens there."""
    return done <= EAGER or done % EVERY == 0 or done == steps


def weak_step(steps: int, share: float) -> int:
    """After how many of `steps` steps the weak average is taken: the first that are at least the
    share."""
    return next(n for n in itertools.count(int(steps * share)) if n / steps >= share)


def no_weak(steps: int, done: int, share: float) -> str:
    """Why a run that keeps its weak average has none after `done` of `steps` steps."""
    taken = weak_step(steps, share)
    if done < taken:
        return f"no weak average yet: --keep-weak takes it after step {taken:,}"
    return f"no weak average: step {taken:,}, after which it is taken, was done before"


@dataclass(frozen=True)
class Weak:
    """The average as it was after `step` steps, on the CPU: what better weights are guided by."""

    step: int
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, average: Average, step: int) -> Weak:
        """A copy of an average."""
        own = average.net.state_dict()
        return cls(step, {name: tensor.detach().cpu().clone() for name, tensor in own.items()})


class Average:
    """A copy of `net` that follows its weights; buffers are not averaged.

    Attributes:
        net: the copy, without gradients.
        updates: how many updates of the weights it has followed.
        forgotten: of these, those before it began anew.
    """

    def __init__(self, net: nn.Module, largest: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.largest = largest
        self.updates = self.forgotten = 0

    def restart(self) -> None:
        """Begin anew: the next update forgets all before."""
        self.forgotten = self.updates

    def follow(self, net: nn.Module, updates: int = 1) -> None:
        """Move towards `net` after `updates` updates of its weights.

        The decays of these updates multiply, as if each had left the weights as they are now.
        """
        if updates == 0:
            return
        known = self.updates - self.forgotten
        decays = [decay_at(known + n, self.largest) for n in range(updates)]
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.net.parameters()), list(net.parameters()), 1 - math.prod(decays)
            )
        self.updates += updates
