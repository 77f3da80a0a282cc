"""Windows: a model of small samples, used on larger ones.

`windowed` cuts x_t into overlapping windows of the model's size, predicts each, and averages what
they say where they overlap (MultiDiffusion: Bar-Tal et al. 2023, eq. 5). It is a function from
`Denoise` to `Denoise`: samplers, guidance and restoration go with it as with the model itself.
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

from diffuse_cli.core.denoiser import Denoise, Prediction
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.settings import dimensions

OVERLAP = 0.5
"""The least share of a window that the next one covers too."""

Place = tuple[slice, ...]


@dataclass(frozen=True)
class Tiling:
    """Windows over a sample, spread evenly from edge to edge in every dimension.

    Attributes:
        whole: of the sample, (*whole).
        size: of a window, (*size).
        overlap: in [0, 1): the least share of a window that the next one covers too.

    Raises:
        InvalidArgument: a sample smaller than a window, or of other dimensions.
    """

    whole: tuple[int, ...]
    size: tuple[int, ...]
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        fits = len(self.whole) == len(self.size)
        if not fits or any(w < s for w, s in zip(self.whole, self.size, strict=True)):
            raise InvalidArgument(
                f"a sample of {dimensions(self.whole)} is smaller than the model's "
                f"{dimensions(self.size)}"
            )

    def starts(self, axis: int) -> list[int]:
        """Where windows begin in a dimension."""
        span, side = self.whole[axis] - self.size[axis], self.size[axis]
        count = 1 + math.ceil(span / max(1, math.floor(side * (1 - self.overlap))))
        return [round(span * k / max(1, count - 1)) for k in range(count)]

    @cached_property
    def places(self) -> list[Place]:
        """The windows, to index (B, C, *whole)."""
        corners = itertools.product(*(self.starts(axis) for axis in range(len(self.whole))))
        every = slice(None)
        return [
            (every, every, *(slice(a, a + s) for a, s in zip(corner, self.size, strict=True)))
            for corner in corners
        ]

    def weight(self, like: Tensor) -> Tensor:
        """How much each position of a window counts, (*size): a pyramid, least at the border."""
        weight = like.new_ones(())
        for side in self.size:
            steps = torch.arange(side, dtype=like.dtype, device=like.device)
            weight = weight[..., None] * (torch.minimum(steps, steps.flip(0)) + 1)
        return weight

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, C, *whole) from what is said of each window, (B, C, *size): the weighted mean."""
        first = parts[0]
        total = first.new_zeros(*first.shape[:2], *self.whole)
        weight, counted = self.weight(first), first.new_zeros(self.whole)
        for place, part in zip(self.places, parts, strict=True):
            total[place] += weight * part
            counted[place[2:]] += weight
        return total / counted


def windowed(
    denoise: Denoise, size: Sequence[int], *, overlap: float = OVERLAP, batch: int = 64
) -> Denoise:
    """`denoise` for samples (B, C, *whole) of any size from `size` up.

    A window counts most in its middle, so that predictions pass over into each other. The means of
    x_0 and of eps have the same weights: x_t = alpha x_0 + sigma eps holds as before. A sample of
    the model's size is predicted by the model alone.

    Args:
        size: of the samples that the model was trained on, (*size).
        overlap: in [0, 1): the least share of a window that the next one covers too.
        batch: the most windows that are predicted at a time; one of each sample at least.

    Raises:
        InvalidArgument: as `Tiling` does, when it is called.
    """

    def predicted(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        tiling = Tiling(tuple(x_t.shape[2:]), tuple(size), overlap)
        if tiling.whole == tiling.size:
            return denoise(x_t, t, **cond)
        together = max(1, batch // len(x_t))
        found: list[tuple[Prediction, int]] = []
        for start in range(0, len(tiling.places), together):
            places = tiling.places[start : start + together]
            several = denoise(
                torch.cat([x_t[place] for place in places]),
                _repeated(t, len(places)),
                **{name: _cut(value, places, tiling) for name, value in cond.items()},
            )
            found.append((several, len(places)))
        return _merged(found, tiling)

    return predicted


def _merged(found: Sequence[tuple[Prediction, int]], tiling: Tiling) -> Prediction:
    """One prediction from those of several batches of windows, with the number in each."""

    def mean(of: Callable[[Prediction, int], Tensor]) -> Tensor:
        return tiling.merge([part for p, count in found for part in of(p, count).chunk(count)])

    def log_var(t: Any, s: Any = None) -> Any:
        def own(p: Prediction, count: int) -> Any:
            assert p.log_var is not None
            return p.log_var(_repeated(t, count), _repeated(s, count))

        (first, count), *_ = found
        value = own(first, count)
        if not isinstance(value, Tensor):
            return value
        alike = tuple(value.shape[2:]) != tiling.size  # a number for each sample
        return value.chunk(count)[0] if alike else mean(own)

    return Prediction(
        mean(lambda p, _: p.x0),
        mean(lambda p, _: p.eps),
        log_var=None if found[0][0].log_var is None else log_var,
    )


def _repeated(value: Any, count: int) -> Any:
    """What holds for a batch, for `count` windows of each sample, window after window."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.repeat(count, *[1] * (value.ndim - 1))


def _cut(value: Any, places: Sequence[Place], tiling: Tiling) -> Any:
    """A condition for each window: its part of an array, the same of anything else."""
    if isinstance(value, Tensor) and tuple(value.shape[2:]) == tiling.whole:
        return torch.cat([value[place] for place in places])
    return _repeated(value, len(places))
