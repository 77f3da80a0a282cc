"""The average of the weights that samples are drawn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

POWER = 0.75


def decay_at(update: int, largest: float) -> float:
    """The decay of the n-th update: min(largest, 1 - (n + 1)^-0.75), 0 at the first.

    A growing memory: early in a run the average forgets the random start, so that a short run
    already samples from sensible weights.
    """
    decay: float = 1 - (update + 1) ** -POWER
    return min(largest, decay)


def averaged(net: nn.Module, largest: float) -> AveragedModel:
    """A copy of `net` that `update_parameters` moves towards it; buffers are not averaged."""

    def average(means: Any, weights: Any, updates: Tensor | int) -> None:
        # The counter that is passed in lies on the device, and reading it there would wait.
        torch._foreach_lerp_(means, weights, 1 - decay_at(int(model.n_averaged), largest))

    model = AveragedModel(net, multi_avg_fn=average)
    model.requires_grad_(False)
    return model.eval()
