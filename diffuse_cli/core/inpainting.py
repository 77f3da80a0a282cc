"""Masks of the known positions of a sample, and jumps of a sampler.

`MASKS[name](u, size)` returns (B, 1, *size), 1 where known, from random numbers u in [0, 1) of
shape (B, `MASKS[name].uniforms(size)`). The size has one to three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import InvalidArgument, Registry
from diffuse_cli.core.solvers import Noise, State, Times
from diffuse_cli.core.space import send

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.process import Process


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


# -- jumps ----------------------------------------------------------------------------------------

# Jumps: after some steps the forward process adds noise, and the sampler repeats them.
#
# A sampler can fit one region before its surroundings agree with it. Noising both gives it another
# chance (RePaint, Lugmayr et al. 2022, sec. 4.2; "time travel" in Wang et al. 2023). The forward
# transition q(x_t | x_s) is exact, so with an exact sampler a jump does not change the
# distribution.

Sample = Callable[..., Iterator[State]]
"""Sampler with its first arguments: `partial(SAMPLERS[name], denoise, process, **options)`."""


@dataclass(frozen=True)
class Segment:
    """Part of a sampler's path: its descending times, and its end (-1 is clean)."""

    times: tuple[int | float, ...]
    end: int | float = -1


def split_path(times: Times, length: int = 10, repeats: int = 1) -> list[Segment]:
    """Return RePaint's path, with every `length` steps `repeats` times (Lugmayr et al. 2022).

    Noise is added between the repetitions. With `repeats` 1 the path has a single segment.

    Args:
        times: the descending times of a sampler.

    Raises:
        InvalidArgument: a length or repeats below 1.
    """
    for name, value in (("length", length), ("repeats", repeats)):
        if value < 1:
            raise InvalidArgument("must be at least 1", argument=name)
    ends = [*times[1:], -1]
    segments, start = list[Segment](), 0
    for first in range(0, len(times), length):
        last = min(first + length, len(times))
        for _ in range(repeats - 1):
            segments.append(Segment(tuple(times[start:last]), ends[last - 1]))
            start = first
    return [*segments, Segment(tuple(times[start:]))]


def sample_with_jumps(
    sample: Sample, process: Process, x: Tensor, path: list[Segment], *, noise: Noise
) -> Iterator[State]:
    """Sample along each segment, and add noise from its end to the start of the next segment.

    Multistep samplers begin each segment without history.

    Args:
        sample: the sampler, called as `sample(x, times, noise=noise)`. If a segment does not end at
            clean data, also with `end=end`.
        x: the samples at the first time of the first segment.
        noise: `noise(k)` is the noise of the k-th step or jump, each with its own k.

    Yields:
        A `State` after each step.
    """
    draws = 0
    for i, segment in enumerate(path):
        if i > 0:
            before = path[i - 1].end
            x = process.transition(x, before, segment.times[0]).sample(noise(draws))
            draws += 1

        # Without jumps, samplers of other packages need not support `end`.
        options = {} if segment.end < 0 else {"end": segment.end}
        for state in sample(x, segment.times, noise=lambda k, by=draws: noise(by + k), **options):
            x = state.x
            yield state
        draws += len(segment.times)


def count_steps(path: list[Segment]) -> int:
    """Return the number of steps of a path."""
    return sum(len(segment.times) for segment in path)
