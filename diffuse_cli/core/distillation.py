"""Consistency: a denoiser whose estimate of x_0 is where the path of x_t ends.

Samples move along the probability flow from noise to data. A consistency function gives the end of
the path from any x_t on it, so one evaluation draws a sample (Song et al. 2023b). It is x at
sigma = 0; the estimate of x_0 of a `Denoiser` is so for every target that determines x_0, under v
as alpha x - sigma v. So a trained denoiser is where its training starts, with no other network.

A denoiser knows its own paths: a solver finds one in a few steps. `consistency_loss` asks for the
end of the path at all of its points (Luhman & Luhman 2021, who ask at the first). Consistency
training (Song et al. 2023b) compares the estimates at neighbouring points instead. It needs no
path, and learns the function from its end on, point by point; in minutes that did not get far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.solvers import State, Times, unipc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser, Prediction
    from diffuse_cli.core.process import Process
    from diffuse_cli.core.solvers import Noise


FINE = (4, 1, 1, 3)
"""Steps of the solver from each point of a path to the next: at much noise, where structures wider
than a pixel take shape, and from the last point on, where details do (benchmarks/README.md)."""

POINTS = len(FINE)
"""Points of a path: the times of 4 evaluations, and so those of 2 and 1. Twice as many, on half as
many paths, take as long and draw worse in all of these (benchmarks/README.md)."""

FIRST = 3.0
"""The weight of a path's first point, from which one evaluation draws; the others have 1."""

EVALUATIONS = sum(FINE) + POINTS
"""Evaluations of a network for the loss of a sample."""


@dataclass(frozen=True)
class Path:
    """Samples on their way from noise.

    Attributes:
        x: at each of the times, (K, B, C, *size).
        times: K timesteps, descending.
        end: clean, (B, C, *size).
    """

    x: Tensor
    times: tuple[int | float, ...]
    end: Tensor


def path(denoise: Denoise, process: Process, noise: Tensor, fine: Sequence[int] = FINE) -> Path:
    """The path from `noise` by steps of `unipc`, without gradients.

    Args:
        fine: how many from each point to the next, and from the last to the end.
    """
    import torch

    points = process.times(min(len(fine), process.num_timesteps))
    times: list[int] = []
    places: list[int] = []
    for (t, s), steps in zip(pairwise([*points, -1]), fine, strict=False):
        steps = min(steps, int(t - s))
        places.append(len(times))
        times += [round(t - (t - s) * k / steps) for k in range(steps)]
    with torch.no_grad():
        states = unipc(denoise, process, noise, times, noise=lambda k: noise)  # it draws none
        passed = [noise, *(state.x for state in states)]
    return Path(torch.stack([passed[k] for k in places]), tuple(points), passed[-1])


def consistency_loss(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    weight: Tensor | None = None,
    *,
    teacher: Denoise | None = None,
    **cond: Any,
) -> Tensor:
    """How far the estimate of x_0 is from the end of the path, a mean over its points, the first of
    which counts `FIRST` times. Shape (B,).

    The path starts at `noise`, so x0 and t are not used. Distances are means of absolute
    differences, over sigma: an error in v. Squares draw worse images (benchmarks/README.md).

    Args:
        teacher: whose path it is, such as a guided denoiser of the same process; `denoiser` itself
            by default.
    """
    import torch

    process, count = denoiser.process, len(noise)
    leads = teacher or denoiser

    def told_the_same(x_t: Tensor, t: Any, /, **_: Any) -> Prediction:
        return leads(x_t, t, **cond)

    found = path(told_the_same, process, noise)
    points = len(found.times)
    times = torch.tensor(found.times, device=noise.device).repeat_interleave(count)
    told = {key: value.repeat(points, *[1] * (value.ndim - 1)) for key, value in cond.items()}
    estimate = denoiser(found.x.flatten(0, 1), times, **told).x0
    _, sigma = process.level(times, like=estimate)
    error = (estimate - found.end.repeat(points, *[1] * (noise.ndim - 1))) / sigma
    distance = error.abs().flatten(1).mean(1)
    by_point = distance.unflatten(0, (points, count))
    mean: Tensor = (by_point.sum(0) + (FIRST - 1) * by_point[0]) / (points + FIRST - 1)
    return mean if weight is None else mean * weight


def sample(
    denoise: Denoise, process: Process, x: Tensor, times: Times, *, noise: Noise, end: float = -1
) -> Iterator[State]:
    """Each step goes to x_0, and back up to the next time with fresh noise (Song et al. 2023b, alg.
    1). Exact at any number of steps for a consistency function, and for nothing else."""
    for k, (t, s) in enumerate(pairwise([*times, end])):
        x0 = denoise(x, t).x0
        x = x0 if s < 0 else process.diffuse(x0, s, noise(k))
        yield State(x, x0, s)


# -- matching -------------------------------------------------------------------------------------

# Distribution matching: samples move to where a model of the data says that they belong.
#
# Samples that a generator draws in an evaluation or two have a density q; what a teacher draws, p.
# Noised to t, the samples should move along grad log p_t - grad log q_t, minus the gradient of
# KL(q_t || p_t) with respect to them (Yin et al. 2024a, section 3.2). The teacher's score is known.
# That of the samples is learned beside them by a critic, a denoiser that is trained on nothing
# else. As grad log p_t = (alpha x_0 - x_t) / sigma^2 with the estimate of x_0, the difference of
# two scores is that of two estimates but for a factor.
#
# No sample is compared with one of the teacher's, so none becomes the blurred mean of several.

LEAST, MOST = 0.02, 0.7
"""The times at which samples are compared, as parts of T; 0.98 in the paper. Where there is more
noise, a critic that is behind moves whole shapes, and samples swell (benchmarks/README.md)."""

FLOOR = 1e-3
"""The least distance by which a direction is divided."""


def level(process: Process, u: Tensor) -> Tensor:
    """Timesteps to compare at, from u in [0, 1)."""
    t = ((LEAST + (MOST - LEAST) * u) * process.num_timesteps).long()
    return t.clamp(max=process.num_timesteps - 1)


def draw(denoiser: Denoiser, noise: Tensor, again: Tensor, **cond: Any) -> Tensor:
    """What one evaluation draws from `noise`, and after it what two do. Shape (2 B, C, *size).

    The second begins with what the first has drawn, with `again` as fresh noise, as
    `consistency.sample` does it. Each is trained by itself: no gradient goes from one to the other
    (Yin et al. 2024b, section 4.5).
    """
    import torch

    process = denoiser.process
    first, *rest = process.times(min(2, process.num_timesteps))
    second = rest[0] if rest else first
    with torch.no_grad():
        x_t = process.diffuse(denoiser(noise, first, **cond).x0, second, again)
    times = torch.tensor([first, second], device=noise.device).repeat_interleave(len(noise))
    return denoiser(torch.cat([noise, x_t]), times, **twice(cond)).x0


def twice(cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What samples are told, for both that `draw` makes of each noise."""
    import torch

    return {key: torch.cat([value, value]) for key, value in cond.items()}


def distribution_matching_loss(
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    process: Process,
    teacher: Denoise,
    critic: Denoise,
    **cond: Any,
) -> Tensor:
    """Half the squared length of the way that samples should go, a mean over dimensions. (B,).

    Its gradient with respect to x0 is minus that way: the difference of the two estimates, divided
    by how far the teacher's is from the sample (Yin et al. 2024a, section 3.2).

    Args:
        x0: drawn samples, with their gradient.
        critic: a denoiser of such samples.
    """
    import torch

    from diffuse_cli.core.process import spread

    with torch.no_grad():
        x_t = process.diffuse(x0, t, noise)
        wanted, known = teacher(x_t, t, **cond).x0, critic(x_t, t, **cond).x0
        scale = (x0 - wanted).abs().flatten(1).mean(1).clamp(min=FLOOR)
        there = x0 + (wanted - known) / spread(scale, x0)
    return (x0 - there).square().flatten(1).mean(1) / 2
