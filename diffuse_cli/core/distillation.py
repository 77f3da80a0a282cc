"""Distillation into a denoiser whose estimate of x_0 is the endpoint of the path through x_t.

Samples move along the probability flow from noise to data. A consistency function maps every x_t to
the endpoint of its path, so one evaluation generates a sample (Song et al. 2023b). At sigma = 0 it
must return x. The estimate of x_0 of a `Denoiser` does so for every target that determines x_0, for
example alpha x - sigma v. So distillation starts from the trained denoiser, without another
network.

A solver finds paths of the denoiser in a few steps. `consistency_loss` compares the estimates at
all points of a path with its endpoint (Luhman & Luhman 2021 compare only the first). Consistency
training (Song et al. 2023b) compares the estimates at neighboring points instead. It does not need
a path, but learns point by point from the endpoint on, which makes little progress in minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.solvers import unipc
from diffuse_cli.core.space import expand_batch, send

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser, Prediction
    from diffuse_cli.core.process import Process


FINE = (4, 1, 1, 3)
"""Steps of the solver from each point of a path to the next. Most are at high noise, where
structures wider than a pixel take shape, and after the last point, where details do
(benchmarks/README.md)."""

POINTS = len(FINE)
"""Points of a path: the times of 4 evaluations, which include the times of 2 and of 1. 8 points on
half the number of paths take as long, and samples are worse with 1, 2 and 4 evaluations
(benchmarks/README.md)."""

FIRST = 3.0
"""Weight of a path's first point, which generates samples in one evaluation. Others have 1."""

EVALUATIONS = sum(FINE) + POINTS
"""Evaluations of a network for the loss of one sample."""


@dataclass(frozen=True)
class Trajectory:
    """Paths of samples from noise to data.

    Attributes:
        x: the samples at each of the times, (K, B, C, *size).
        times: the K timesteps, descending.
        end: the clean samples, (B, C, *size).
    """

    x: Tensor
    times: tuple[int | float, ...]
    end: Tensor


def solve_trajectory(
    denoise: Denoise, process: Process, noise: Tensor, fine: Sequence[int] = FINE
) -> Trajectory:
    """Return the path from `noise` by steps of `unipc`, without gradients.

    The points are the inputs of the network, before `unipc` corrects them in the next step.

    Args:
        fine: the number of steps from each point to the next, and from the last to the end.
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
    return Trajectory(torch.stack([passed[k] for k in places]), tuple(points), passed[-1])


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
    """Return the distance of x_0 estimates from the endpoint of the path, a mean over its points.

    Shape (B,). The first point counts `FIRST` times. The path starts at `noise`, so x0 and t are
    not used. Distances are means of absolute differences over sigma, which are errors in v. Squared
    differences give worse images (benchmarks/README.md).

    Args:
        teacher: the denoiser that makes the path, such as a guided denoiser of the same process. By
            default it is `denoiser` itself.
    """
    import torch

    process, count = denoiser.process, len(noise)
    guide = teacher or denoiser

    def conditioned(x_t: Tensor, t: Any, /, **_: Any) -> Prediction:
        return guide(x_t, t, **cond)

    trajectory = solve_trajectory(conditioned, process, noise)
    points = len(trajectory.times)
    times = send(torch.tensor(trajectory.times), noise.device).repeat_interleave(count)
    estimate = denoiser(trajectory.x.flatten(0, 1), times, **repeat_conditions(cond, points)).x0
    _, sigma = process.alpha_sigma(times, like=estimate)
    error = (estimate - trajectory.end.repeat(points, *[1] * (noise.ndim - 1))) / sigma
    distance = error.abs().flatten(1).mean(1)
    by_point = distance.unflatten(0, (points, count))
    mean: Tensor = (by_point.sum(0) + (FIRST - 1) * by_point[0]) / (points + FIRST - 1)
    return mean if weight is None else mean * weight


# -- matching -------------------------------------------------------------------------------------

# Distribution matching: samples move toward a higher density under a model of the data.
#
# Let q be the density of samples that a generator makes in one or two evaluations, and p the
# density of the teacher's samples. Noised to t, samples should move along grad log p_t -
# grad log q_t, minus the gradient of KL(q_t || p_t) with respect to them (Yin et al. 2024a, section
# 3.2). The teacher gives the first score. A critic gives the second: a denoiser that is trained
# only on the generator's samples. As grad log p_t = (alpha x_0 - x_t) / sigma^2 with the estimate
# of x_0, the difference of two scores is a multiple of the difference of two estimates.
#
# Samples are not compared with samples of the teacher, so they do not become blurred means.

LEAST, MOST = 0.02, 0.7
"""Range of times for the comparison, as fractions of T. The paper goes up to 0.98, but at higher
noise a critic that lags behind moves whole shapes, and samples swell (benchmarks/README.md)."""

FLOOR = 1e-3
"""Least distance by which a direction is divided."""


def matching_timesteps(process: Process, u: Tensor) -> Tensor:
    """Return timesteps for the comparison, from u in [0, 1)."""
    t = ((LEAST + (MOST - LEAST) * u) * process.num_timesteps).long()
    return t.clamp(max=process.num_timesteps - 1)


def generate_samples(denoiser: Denoiser, noise: Tensor, again: Tensor, **cond: Any) -> Tensor:
    """Generate samples from `noise` with one and with two evaluations. Shape (2 B, C, *size).

    The second evaluation starts from the sample of the first, with `again` as new noise, as in
    the sampler `consistency`. Both are trained separately: gradients do not flow from the second
    evaluation to the first (Yin et al. 2024b, section 4.5).
    """
    import torch

    process = denoiser.process
    first, *later_times = process.times(min(2, process.num_timesteps))
    second = later_times[0] if later_times else first
    with torch.no_grad():
        x_t = process.diffuse(denoiser(noise, first, **cond).x0, second, again)
    times = send(torch.tensor([first, second]), noise.device).repeat_interleave(len(noise))
    return denoiser(torch.cat([noise, x_t]), times, **repeat_conditions(cond)).x0


def repeat_conditions(cond: Mapping[str, Tensor], count: int = 2) -> dict[str, Tensor]:
    """Repeat the conditions of a batch, by default for the two samples of `generate_samples`."""
    return {key: value.repeat(count, *[1] * (value.ndim - 1)) for key, value in cond.items()}


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
    """Return half the mean square over dimensions of the direction in which samples should move.

    Shape (B,). Its gradient with respect to x0 is minus that direction over the number of
    dimensions: the difference of the two estimates, divided by the distance of the teacher's from
    the sample (Yin et al. 2024a, section 3.2).

    Args:
        x0: the generated samples, with their gradient.
        critic: a denoiser that is trained on generated samples.
    """
    import torch

    with torch.no_grad():
        x_t = process.diffuse(x0, t, noise)
        teacher_x0, critic_x0 = teacher(x_t, t, **cond).x0, critic(x_t, t, **cond).x0
        scale = (x0 - teacher_x0).abs().flatten(1).mean(1).clamp(min=FLOOR)
        target = x0 + (teacher_x0 - critic_x0) / expand_batch(scale, x0)
    return (x0 - target).square().flatten(1).mean(1) / 2
