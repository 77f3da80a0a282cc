"""Masks of the known positions of a sample.

`MASKS[name](u, size)` returns (B, 1, *size), 1 where known, from random numbers u in [0, 1) of
shape (B, `MASKS[name].uniforms(size)`). The size has one to three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import Registry
from diffuse_cli.core.space import send

if TYPE_CHECKING:
    from torch import Tensor


Size = tuple[int, ...]

SMALLEST, LARGEST = 0.25, 0.75
"""Range of the sides of a box, as fractions of the sample's sides."""

STROKES, THINNEST, THICKEST = 4, 0.02, 0.1
"""Number of strokes, and the range of their half widths as fractions of the longest side."""

LEAST, MOST = 0.1, 0.9
"""Range of the fraction of known positions in `random`."""


@dataclass(frozen=True)
class MaskKind:
    """Kind of mask.

    Attributes:
        mask: the function (u, size) -> (B, 1, *size), true where known.
        uniforms: the number of random numbers per sample of a size.
    """

    mask: Callable[[Tensor, Size], Tensor]
    uniforms: Callable[[Size], int]

    def __call__(self, u: Tensor, size: Size) -> Tensor:
        """Return 1 where known, else 0, in u's type."""
        return self.mask(u, size).to(u.dtype)


def position_centers(size: Size, like: Tensor, unit: float | None = None) -> Tensor:
    """Return the center of each position, (d, *size), as fractions of the sides or of `unit`."""
    import torch

    axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / (unit or n)
            for n in size]  # fmt: skip
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def half(u: Tensor, size: Size) -> Tensor:
    """The first half along the last dimension is known: the left half of an image."""
    mask = position_centers(size, u)[-1] < 0.5
    return mask.expand(len(u), 1, *size)


def box(u: Tensor, size: Size) -> Tensor:
    """Everything outside a box is known."""
    sides, starts = u.reshape(len(u), 2, len(size), *[1] * len(size)).unbind(1)
    sides = SMALLEST + (LARGEST - SMALLEST) * sides
    offset = position_centers(size, u) - (1 - sides) * starts
    return ((offset < 0) | (offset >= sides)).any(1, keepdim=True)


def strokes(u: Tensor, size: Size) -> Tensor:
    """Everything outside a few thick straight strokes is known."""
    import torch

    unit, d = max(size), len(size)
    u = u.reshape(len(u), STROKES, 2 * d + 1, *[1] * d)
    sides = send(torch.tensor([n / unit for n in size], dtype=u.dtype), u.device)
    sides = sides.reshape(d, *[1] * d)
    start, end = u[:, :, :d] * sides, u[:, :, d : 2 * d] * sides
    offset, along = position_centers(size, u, unit) - start, end - start
    length = along.square().sum(2, keepdim=True).clamp(min=1e-12)
    fraction = ((offset * along).sum(2, keepdim=True) / length).clamp(0, 1)
    distance = (offset - fraction * along).square().sum(2).sqrt()
    width = THINNEST + (THICKEST - THINNEST) * u[:, :, -1]
    return (distance > width).all(1, keepdim=True)


def random_mask(u: Tensor, size: Size) -> Tensor:
    """Each position is known with a probability that is random per sample."""
    fraction = LEAST + (MOST - LEAST) * u[:, 0]
    return u[:, 1:].reshape(len(u), 1, *size) < fraction.reshape(-1, *[1] * (len(size) + 1))


MASKS: Registry[MaskKind] = Registry(
    "masks",
    {
        "half": MaskKind(half, lambda size: 0),
        "box": MaskKind(box, lambda size: 2 * len(size)),
        "strokes": MaskKind(strokes, lambda size: STROKES * (2 * len(size) + 1)),
        "random": MaskKind(random_mask, lambda size: 1 + math.prod(size)),
    },
)
