"""Overlapping windows, which let a model generate samples larger than its training size.

`tile_network` cuts x_t into overlapping windows of the model's size, predicts each window, and
averages the predictions where windows overlap (MultiDiffusion: Bar-Tal et al. 2023, eq. 5). It
wraps the network, so targets, guidance, restoration and samplers work unchanged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import dimensions

OVERLAP = 0.5
"""The least fraction of a window that the next window covers too, in [0, 1)."""

Place = tuple[slice, ...]
Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Tiling:
    """Windows over a sample, spread evenly from edge to edge in every dimension.

    Attributes:
        whole: the size of the sample.
        size: the size of a window.

    Raises:
        InvalidArgument: a sample smaller than a window, or with other dimensions.
    """

    whole: tuple[int, ...]
    size: tuple[int, ...]

    def __post_init__(self) -> None:
        fits = len(self.whole) == len(self.size)
        if not fits or any(w < s for w, s in zip(self.whole, self.size, strict=True)):
            text = f"{dimensions(self.whole)} is smaller than the model's {dimensions(self.size)}"
            raise InvalidArgument(text, argument="size")

    def starts(self, axis: int) -> list[int]:
        """Return the first index of each window in a dimension.

        Indices are multiples of a unit, so that windows begin where blocks of a `low-res` input do.
        """
        span, side = self.whole[axis] - self.size[axis], self.size[axis]
        stride = max(1, math.floor(side * (1 - OVERLAP)))
        count, unit = 1 + math.ceil(span / stride), math.gcd(span, stride)
        return [unit * round(span * k / (unit * max(1, count - 1))) for k in range(count)]

    @cached_property
    def windows(self) -> list[Place]:
        """The windows as indices of (B, C, *whole)."""
        corners = itertools.product(*(self.starts(axis) for axis in range(len(self.whole))))
        every = slice(None)
        return [
            (every, every, *(slice(a, a + s) for a, s in zip(corner, self.size, strict=True)))
            for corner in corners
        ]

    def weight(self, like: Tensor) -> Tensor:
        """Return the weight of each position in a window, (*size), a pyramid."""
        weight = like.new_ones(())
        for side in self.size:
            steps = torch.arange(side, dtype=like.dtype, device=like.device)
            weight = weight[..., None] * (torch.minimum(steps, steps.flip(0)) + 1)
        return weight

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Merge predictions of windows, (B, C, *size), to their weighted mean (B, C, *whole)."""
        first = parts[0]
        total = first.new_zeros(*first.shape[:2], *self.whole)
        weight, counted = self.weight(first), first.new_zeros(self.whole)
        for place, part in zip(self.windows, parts, strict=True):
            total[place] += weight * part
            counted[place[2:]] += weight
        return total / counted


def tile_network(net: Network, size: Sequence[int], *, batch: int = 64) -> Network:
    """Wrap `net` for samples (B, C, *whole) that are at least as large as `size`.

    Windows have the largest weight in their middle, so that predictions blend. x_0, eps and a
    learned variance are linear in the network's output, so averaging the output averages them too.
    A sample of the model's size is passed to `net` directly.

    Args:
        net: the network `net(x, t, **cond) -> (B, C', *size)`, or another function of x.
        size: the size of the samples on which it was trained.
        batch: the most windows to predict at a time, but at least one per sample.

    Raises:
        InvalidArgument: when it is called with a sample that `Tiling` refuses.
    """

    def predicted(x: Tensor, t: Any, *more: Any, **cond: Any) -> Tensor:
        tiling = Tiling(tuple(x.shape[2:]), tuple(size))
        if tiling.whole == tiling.size:
            return net(x, t, *more, **cond)
        together = max(1, batch // len(x))
        found: list[Tensor] = []
        for start in range(0, len(tiling.windows), together):
            places = tiling.windows[start : start + together]
            own = {name: _cut(value, places, tiling) for name, value in cond.items()}
            inputs = (_cut(value, places, tiling) for value in (x, t, *more))
            several = net(*inputs, **own)
            found += several.chunk(len(places))
        return tiling.merge(found)

    return predicted


def _cut(value: Any, places: Sequence[Place], tiling: Tiling) -> Any:
    """Return an input of the network for each window: parts of an array, copies of other values."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if tuple(value.shape[2:]) == tiling.whole:
        return torch.cat([value[place] for place in places])
    return value.repeat(len(places), *[1] * (value.ndim - 1))
