"""Jumps: part of the way down, up again by the forward process, and on.

What a sampler has made fit in one place and not yet around it is noised again and gets another
chance (RePaint, Lugmayr et al. 2022, sec. 4.2; "time travel" in Wang et al. 2023). The forward
transition q(x_t | x_s) is exact: with an exact sampler a jump changes no distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.solvers import State, Times

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.process import Process
    from diffuse_cli.core.solvers import Noise

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

        def shifted(k: int, by: int = drawn) -> Tensor:
            return noise(by + k)

        # A sampler of another package need not know of ends where there are no jumps.
        told = {} if leg.end < 0 else {"end": leg.end}
        for state in sample(x, leg.times, noise=shifted, **told):
            x = state.x
            yield state
        drawn += len(leg.times)


def evaluations(path: list[Leg]) -> int:
    """The steps of a path."""
    return sum(len(leg.times) for leg in path)
