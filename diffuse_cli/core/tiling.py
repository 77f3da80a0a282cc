"""Overlapping windows, which let a model generate samples larger than its training size.

`tile_network` cuts x_t into overlapping windows of the model's size, predicts each window, and
averages the predictions where windows overlap (MultiDiffusion: Bar-Tal et al. 2023, eq. 5). It
wraps the network, so targets, guidance, restoration and samplers work unchanged.

Windows are predicted in parts. For a gradient, only x_t is kept, and each part is predicted again
when its gradient is due. So the memory depends on the windows of a part, not on all windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core.networks import run_checkpointed, run_directly
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import dimensions

OVERLAP = 0.5
"""The least fraction of a window that the next window covers too, in [0, 1)."""

WINDOWS = 64
"""Most windows to predict at a time."""

Place = tuple[slice, ...]
Network = Callable[..., Tensor]
Linear = Callable[[Tensor], Tensor]


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

    def cut(self, places: Sequence[Place], x: Tensor) -> Tensor:
        """Cut windows (N B, C, *size) at N places of samples (B, C, *whole)."""
        return torch.cat([x[place] for place in places])

    def add(self, places: Sequence[Place], windows: Tensor) -> Tensor:
        """Add windows (N B, C, *size) at N places of samples (B, C, *whole) of zeros."""
        total = windows.new_zeros(len(windows) // len(places), windows.shape[1], *self.whole)
        for place, window in zip(places, windows.chunk(len(places)), strict=True):
            total[place] += window
        return total


class _Linear(torch.autograd.Function):
    """Linear map, whose gradient is its transpose.

    Autograd's own gradients of slices copy the whole sample for each window.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, apply: Linear, transpose: Linear) -> Tensor:
        ctx.transpose = transpose
        return apply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transpose(grad), None, None


def tile_network(
    net: Network, size: Sequence[int], *, room: Callable[[], int] | None = None
) -> Network:
    """Wrap `net` for samples (B, C, *whole) that are at least as large as `size`.

    Windows have the largest weight in their middle, so that predictions blend. x_0, eps and a
    learned variance are linear in the network's output, so averaging the output averages them too.
    A sample of the model's size is passed to `net` directly.

    Args:
        net: the network `net(x, t, **cond) -> (B, C', *size)`, or another function of x.
        size: the size of the samples on which it was trained.
        room: a function that returns the most windows to predict at a time, but at least one per
            sample, by default `WINDOWS`. It is only called for larger samples. The results of two
            numbers differ by rounding.

    Raises:
        InvalidArgument: when it is called with a sample that `Tiling` refuses.
    """

    def predicted(x: Tensor, t: Any, *more: Any, **cond: Any) -> Tensor:
        tiling = Tiling(tuple(x.shape[2:]), tuple(size))
        if tiling.whole == tiling.size:
            return net(x, t, *more, **cond)

        def predict(places: Sequence[Place], x: Tensor) -> Tensor:
            keywords = {name: _cut(value, places, tiling) for name, value in cond.items()}
            return net(*(_cut(value, places, tiling) for value in (x, t, *more)), **keywords)

        together = max(1, (room() if room else WINDOWS) // len(x))
        starts, weight = range(0, len(tiling.windows), together), tiling.weight(x)
        repeats = len(starts) > 1 and x.requires_grad
        run = run_checkpointed if repeats else run_directly
        total = x.new_zeros(())
        for start in starts:
            places = tiling.windows[start : start + together]
            add, cut = partial(tiling.add, places), partial(tiling.cut, places)
            windows = weight * run(partial(predict, places), x)
            total = total + _Linear.apply(windows, add, cut)  # type: ignore[no-untyped-call]
        return total / tiling.add(tiling.windows, weight.expand(len(tiling.windows), 1, *size))

    return predicted


def _cut(value: Any, places: Sequence[Place], tiling: Tiling) -> Any:
    """Return an input of the network for each window: parts of an array, copies of other values."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if tuple(value.shape[2:]) == tiling.whole:
        add, cut = partial(tiling.add, places), partial(tiling.cut, places)
        return _Linear.apply(value, cut, add)  # type: ignore[no-untyped-call]
    return value.repeat(len(places), *[1] * (value.ndim - 1))
