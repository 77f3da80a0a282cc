"""Samplers: generators over a list of descending times.

`SAMPLERS[name](denoise, process, x, times, *, noise, **knobs)` yields a `State` after each step,
the last of which, to s = -1, gives the images. `noise(k)` is the draw of the k-th step, so that
all randomness comes from outside; progress, animations and early stops are the caller's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from diffuse_cli.core.gaussian import Gaussian
from diffuse_cli.errors import UsageError, lookup

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise
    from diffuse_cli.core.process import Process

    Noise = Callable[[int], Tensor]

Times = Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class State:
    """A sampler between two steps: `x` is at time `t` (-1 is clean), `x0` the last estimate."""

    x: Tensor
    x0: Tensor
    t: int | float


def ddpm(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise
) -> Iterator[State]:
    """Ancestral sampling: x_s from N(posterior mean, reverse variance) (Ho et al. 2020, alg. 2)."""
    for k, (t, s) in enumerate(pairwise([*times, -1])):
        prediction = denoise(x, t)
        step = process.posterior(prediction.x0, x, t, s)
        if s < 0:
            x = step.mean
        else:
            log_var = step.log_var if prediction.log_var is None else prediction.log_var(t, s)
            x = Gaussian(step.mean, log_var).sample(noise(k))
        yield State(x, prediction.x0, s)


def ddim(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, eta: float = 0.0
) -> Iterator[State]:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z (Song et al. 2021, eqs. 12 and 16).

    `eta` scales std between 0 (deterministic) and the posterior's (1, a form of `ddpm`).
    """
    for k, (t, s) in enumerate(pairwise([*times, -1])):
        prediction = denoise(x, t)
        pair = process.pair(t, s, like=x)
        std = 0.0 if s < 0 else eta * math.exp(pair.log_beta_tilde / 2)
        keep = math.sqrt(max(pair.sigma_s**2 - std**2, 0.0))
        x = pair.alpha_s * prediction.x0 + keep * prediction.eps
        if std > 0:
            x = x + std * noise(k)
        yield State(x, prediction.x0, s)


def knobs(sampler: str, **given: float | None) -> dict[str, float]:
    """The options that were given to a sampler, as it takes them.

    Raises:
        UsageError: no such sampler, or it has no option that was given.
    """
    takes = inspect.signature(lookup(SAMPLERS, sampler, "--sampler")).parameters
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in takes:
            raise UsageError(f"--{name}: the sampler '{sampler}' has none")
    return chosen


SAMPLERS: dict[str, Callable[..., Iterator[State]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
}
