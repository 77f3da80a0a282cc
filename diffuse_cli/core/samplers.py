"""Samplers: generators over a list of descending times.

`SAMPLERS[name](denoise, process, x, times, *, noise, **options)` yields a `State` after each step.
The last step goes to `end`. By default that is s = -1, which gives the images. A caller can end
earlier, as `sample_with_jumps` does, which adds noise again from there. `noise(k)` is the noise of
the k-th step, so all randomness comes from the caller.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffuse_cli.core import solvers
from diffuse_cli.core.registry import InvalidArgument, Registry, lookup
from diffuse_cli.core.solvers import Noise, Times
from diffuse_cli.core.solvers import State as State

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Prediction
    from diffuse_cli.core.process import Process

STALLED = 5
"""Evaluations without improvement after which the remaining error counts as rounding."""


def ddpm(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Ancestral sampling: x_s from N(posterior mean, reverse variance) (Ho et al. 2020, alg. 2)."""
    for k, (t, s) in enumerate(pairwise([*times, end])):
        prediction = denoise(x, t)
        step = process.posterior(prediction.x0, x, t, s)
        if prediction.log_var is not None and s >= 0:
            step = replace(step, log_var=prediction.log_var(t, s))
        x = step.mean if s < 0 else step.sample(noise(k))
        yield State(x, prediction.x0, s)


def ddim(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    times: Times,
    *,
    noise: Noise,
    end: float = -1,
    eta: float = 0.0,
) -> Iterator[State]:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z (Song et al. 2021a, eqs. 12 and 16).

    `eta` scales std between 0 (deterministic) and the posterior's (1, a form of `ddpm`).
    """
    for k, (t, s) in enumerate(pairwise([*times, end])):
        prediction = denoise(x, t)
        pair = process.coefficients(t, s, like=x)
        std = 0.0 if s < 0 else eta * math.exp(pair.log_beta_tilde / 2)
        keep = math.sqrt(max(pair.sigma_s**2 - std**2, 0.0))
        x = pair.alpha_s * prediction.x0 + keep * prediction.eps
        if std > 0:
            x = x + std * noise(k)
        yield State(x, prediction.x0, s)


def consistency(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Each step estimates x_0, and adds new noise for the next time (Song et al. 2023b, alg. 1).

    It is exact for every number of steps, but only for a consistency function.
    """
    for k, (t, s) in enumerate(pairwise([*times, end])):
        x0 = denoise(x, t).x0
        x = x0 if s < 0 else process.diffuse(x0, s, noise(k))
        yield State(x, x0, s)


def encode(
    denoise: Denoise,
    process: Process,
    x0: Tensor,
    times: Times,
    *,
    tolerance: float = 1e-5,
    iterations: int = 100,
) -> Iterator[State]:
    """Find the noise from which deterministic `ddim` over the same times makes the images x_0.

    The steps of `ddim`, x_s = alpha_s x_0(x_t) + sigma_s eps(x_t), are inverted from s = -1 to the
    first of `times` (Song et al. 2021a, eqs. 13 and 14). The usual DDIM inversion uses eps at the
    known x_s instead of eps at the unknown x_t. That is accurate only for small steps, and does not
    reproduce the images. Here each step is solved for x_t.

    Args:
        times: the descending times of `ddim`. A `State` is yielded at each, the last time first.
        tolerance: the largest error of `ddim` from x_t, in any element of x_s. If rounding allows,
            it applies to x_s / alpha_s.
        iterations: evaluations allowed per step.

    Raises:
        InvalidArgument: a step has no solution, because it is too long, or because x_0 is clamped
            or hardly depends on x_t.
    """
    x = x0
    for step in reversed(list(solvers.solver_steps(process, times))):
        x, prediction = _invert_step(denoise, step, x, tolerance, iterations)
        yield State(x, prediction.x0, step.t)


def _invert_step(
    denoise: Denoise, step: solvers.SolverStep, x_s: Tensor, tolerance: float, iterations: int
) -> tuple[Tensor, Prediction]:
    """Find the x_t from which `ddim` steps to x_s, by fixed-point iteration.

    With v = alpha eps - sigma x_0 the step is a rotation, x_s = cos x_t - sin v(x_t) (Salimans & Ho
    2022, app. D). The iteration is x_t <- (x_s + sin v(x_t)) / cos.
    """
    cos = step.alpha * step.alpha_s + step.sigma * step.sigma_s
    tried: list[tuple[Tensor, Tensor]] = []
    x, lowest, stalled = x_s, math.inf, 0
    for _ in range(iterations):
        prediction = denoise(x, step.t)
        missed = x_s - step.ddim(prediction)
        worst = float(missed.abs().max())
        if not math.isfinite(worst):
            break
        stalled += 1
        if worst < lowest:
            lowest, stalled, solution = worst, 0, (x, prediction)
        if lowest <= tolerance * step.alpha_s or (stalled >= STALLED and lowest <= tolerance):
            return solution
        tried = [*tried[-4:], ((x + missed / cos).flatten(1), missed.flatten(1))]
        x = _accelerate(tried).reshape(x.shape)
    raise InvalidArgument(
        f"the noise of these images was not found: at timestep {step.t:g} no x_t leads to within "
        f"{tolerance:.1g} of them",
        "Use more steps",
    )


def _accelerate(tried: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return Anderson's next iterate (B, D), from (iterate, residual) pairs, the newest last.

    It mixes the iterates of each image so that the residual of a linear map would be smallest
    (Walker & Ni 2011).
    """
    from torch import stack

    newest, missed = tried[-1]
    if len(tried) == 1:
        return newest
    moves = stack([newest - iterate for iterate, _ in tried[:-1]], 2)
    gains = stack([missed - residual for _, residual in tried[:-1]], 2)
    sizes = gains.norm(dim=1, keepdim=True).clamp(min=1e-30)
    moves, gains = moves / sizes, gains / sizes
    products = gains.mT @ gains, gains.mT @ missed[:, :, None]
    normal = [product.cpu().double() for product in products]  # Metal has no float64
    mix = normal[0].pinverse(1e-10) @ normal[1]
    mixed: Tensor = newest - (moves @ mix.to(moves.dtype).to(moves.device)).squeeze(2)
    return mixed


def sampler_options(sampler: str, **given: float | None) -> dict[str, float]:
    """Return the options that are not None, after checking that the sampler takes them.

    Raises:
        InvalidArgument: no such sampler, or an option that it does not take.
    """
    parameters = inspect.signature(lookup(SAMPLERS, sampler, "sampler")).parameters
    takes = [name for name in given if name in parameters]
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in takes:
            listed = " and ".join(takes) or "no options"
            able = [k for k, run in SAMPLERS.items() if name in inspect.signature(run).parameters]
            hint = f"It takes {listed}. Samplers with it: {', '.join(able)}"
            text = f": the sampler '{sampler}' has none"
            raise InvalidArgument(text, hint, argument=name, code="option_needs")
    return chosen


SAMPLERS: Registry[Callable[..., Iterator[State]]] = Registry(
    "samplers",
    {
        "ddpm": ddpm,
        "ddim": ddim,
        "heun": solvers.heun,
        "dpmpp-2m": solvers.dpmpp_2m,
        "dpmpp-2m-sde": solvers.dpmpp_2m_sde,
        "unipc": solvers.unipc,
        "ipndm": solvers.ipndm,
        "consistency": consistency,
    },
)


def sample(
    denoise: Denoise,
    shape: Sequence[int],
    *,
    steps: int = 20,
    sampler: str = "unipc",
    spacing: str | None = None,
    seed: int | None = None,
    noise: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Generate samples of a shape (B, C, *size), and draw the noise for them.

    Args:
        denoise: a `Denoiser`, or the result of a function in `core.guidance`.
        sampler: a name in `SAMPLERS`.
        spacing: a name in `SPACINGS`, by default `default_spacing`.
        seed: the seed of the noise. By default PyTorch's global generator draws it.
        noise: the initial noise of this shape, on the device of the network. By default it is drawn
            on the CPU.
        options: options of the sampler, such as `eta`. All others are passed to the network.

    Raises:
        InvalidArgument: no such sampler or spacing, more steps than timesteps, or a plain function.
    """
    import torch

    from diffuse_cli.core.guidance import find_process

    process, run = find_process(denoise), lookup(SAMPLERS, sampler, "sampler")
    draws = None if seed is None else torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=draws, device="cpu") if noise is None else noise
    times = process.times(steps, spacing or default_spacing(sampler, steps))
    knobs = {k: options.pop(k) for k in inspect.signature(run).parameters if k in options}

    def noise_at(k: int) -> Tensor:
        return torch.randn(x.shape, generator=draws, device="cpu").to(x)

    with torch.no_grad():
        # One state at a time, as thousands would fill the memory.
        for state in run(partial(denoise, **options), process, x, times, noise=noise_at, **knobs):
            x = state.x
    return x


SPACED = {"unipc": "wide"}
FEW = 10
"""Default spacings of samplers in at most `FEW` steps. All others use `trailing`. Only `unipc` in
few steps was measured (benchmarks/README.md)."""


def default_spacing(sampler: str, steps: int) -> str:
    """Return the default spacing of a sampler."""
    return SPACED.get(sampler, "trailing") if steps <= FEW else "trailing"


WITH_VARIANCE = frozenset({"ddpm"})
"""Samplers that add noise of the denoiser's variance."""

OF_DISTILLED = frozenset({"consistency"})
"""Samplers that need a consistency function. With other denoisers their samples are blurred."""


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
