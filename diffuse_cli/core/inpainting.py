"""Masks: which positions of a sample are known.

`MASKS[name](u, size)` gives (B, 1, *size), 1 where known, from random numbers u in [0, 1) of shape
(B, `MASKS[name].uniforms(size)`); size has one to three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import InvalidArgument, Registry
from diffuse_cli.core.solvers import State, Times

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.process import Process
    from diffuse_cli.core.solvers import Noise


Size = tuple[int, ...]

SMALLEST, LARGEST = 0.25, 0.75
"""The sides of a box, as shares of the sample's."""

STROKES, THINNEST, THICKEST = 4, 0.02, 0.1
"""How many, and their half widths as shares of the longest side."""

LEAST, MOST = 0.1, 0.9
"""The share of positions that `random` leaves known."""


@dataclass(frozen=True)
class Draw:
    """A kind of mask.

    Attributes:
        known: (u, size) -> (B, 1, *size), true where known.
        uniforms: how many random numbers a sample of a size takes.
    """

    known: Callable[[Tensor, Size], Tensor]
    uniforms: Callable[[Size], int]

    def __call__(self, u: Tensor, size: Size) -> Tensor:
        """1 where known, else 0, in u's type."""
        return self.known(u, size).to(u.dtype)


def places(size: Size, like: Tensor, unit: float | None = None) -> Tensor:
    """The middle of each position, (d, *size), as shares of each side or in a unit of length."""
    import torch

    axes = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / (unit or n)
            for n in size]  # fmt: skip
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def half(u: Tensor, size: Size) -> Tensor:
    """The first half along the last dimension is known: the left of a picture."""
    known = places(size, u)[-1] < 0.5
    return known.expand(len(u), 1, *size)


def box(u: Tensor, size: Size) -> Tensor:
    """All but a box is known."""
    sides, starts = u.reshape(len(u), 2, len(size), *[1] * len(size)).unbind(1)
    sides = SMALLEST + (LARGEST - SMALLEST) * sides
    off = places(size, u) - (1 - sides) * starts
    return ((off < 0) | (off >= sides)).any(1, keepdim=True)


def strokes(u: Tensor, size: Size) -> Tensor:
    """All but a few thick straight strokes is known."""
    unit, d = max(size), len(size)
    u = u.reshape(len(u), STROKES, 2 * d + 1, *[1] * d)
    sides = u.new_tensor([n / unit for n in size]).reshape(d, *[1] * d)
    start, end = u[:, :, :d] * sides, u[:, :, d : 2 * d] * sides
    off, along = places(size, u, unit) - start, end - start
    length = along.square().sum(2, keepdim=True).clamp(min=1e-12)
    share = ((off * along).sum(2, keepdim=True) / length).clamp(0, 1)
    distance = (off - share * along).square().sum(2).sqrt()
    width = THINNEST + (THICKEST - THINNEST) * u[:, :, -1]
    return (distance > width).all(1, keepdim=True)


def scattered(u: Tensor, size: Size) -> Tensor:
    """Each position is known by chance; the share of known ones is drawn too."""
    share = LEAST + (MOST - LEAST) * u[:, 0]
    return u[:, 1:].reshape(len(u), 1, *size) < share.reshape(-1, *[1] * (len(size) + 1))


MASKS: Registry[Draw] = Registry(
    "masks",
    {
        "half": Draw(half, lambda size: 0),
        "box": Draw(box, lambda size: 2 * len(size)),
        "strokes": Draw(strokes, lambda size: STROKES * (2 * len(size) + 1)),
        "random": Draw(scattered, lambda size: 1 + math.prod(size)),
    },
)


# -- jumps ----------------------------------------------------------------------------------------

# Jumps: part of the way down, up again by the forward process, and on.
#
# What a sampler has made fit in one place and not yet around it is noised again and gets another
# chance (RePaint, Lugmayr et al. 2022, sec. 4.2; "time travel" in Wang et al. 2023). The forward
# transition q(x_t | x_s) is exact: with an exact sampler a jump changes no distribution.

Sample = Callable[..., Iterator[State]]
"""A sampler that knows what it calls: `partial(SAMPLERS[name], denoise, process, **options)`."""


@dataclass(frozen=True)
class Leg:
    """A way down: the times that are visited, and where it ends (-1 is clean)."""

    times: tuple[int | float, ...]
    end: int | float = -1


def legs(times: Times, length: int = 10, repeats: int = 1) -> list[Leg]:
    """RePaint's path: every `length` steps down are taken `repeats` times (Lugmayr et al. 2022).

    Between two times down it goes up by the same steps; with one it is the straight way.

    Args:
        times: falling, as for a sampler.

    Raises:
        InvalidArgument: a length or repeats below 1.
    """
    for name, value in (("length", length), ("repeats", repeats)):
        if value < 1:
            raise InvalidArgument("must be at least 1", argument=name)
    ends, found, begun = [*times[1:], -1], list[Leg](), 0
    for first in range(0, len(times), length):
        last = min(first + length, len(times))
        for _ in range(repeats - 1):
            found.append(Leg(tuple(times[begun:last]), ends[last - 1]))
            begun = first
    return [*found, Leg(tuple(times[begun:]))]


def travel(
    sample: Sample, process: Process, x: Tensor, path: list[Leg], *, noise: Noise
) -> Iterator[State]:
    """Sample down each leg, and up from its end to the start of the next.

    A sampler of several steps begins each leg without history.

    Args:
        sample: called as `sample(x, times, noise=noise)`, with `end=end` where that is not clean.
        x: at the first time of the first leg.
        noise: `noise(k)` is drawn for the k-th step or jump; none is drawn twice.

    Yields:
        A `State` after each step down.
    """
    drawn = 0
    for i, leg in enumerate(path):
        if i > 0:
            before = path[i - 1].end
            x = process.transition(x, before, leg.times[0]).sample(noise(drawn))
            drawn += 1

        # A sampler of another package need not know of ends where there are no jumps.
        told = {} if leg.end < 0 else {"end": leg.end}
        for state in sample(x, leg.times, noise=lambda k, by=drawn: noise(by + k), **told):
            x = state.x
            yield state
        drawn += len(leg.times)


def evaluations(path: list[Leg]) -> int:
    """The steps of a path."""
    return sum(len(leg.times) for leg in path)
