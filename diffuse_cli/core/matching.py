"""Distribution matching: samples move to where a model of the data says that they belong.

Samples that a generator draws in an evaluation or two have a density q; what a teacher draws, p.
Noised to t, the samples should move along grad log p_t - grad log q_t, minus the gradient of
KL(q_t || p_t) with respect to them (Yin et al. 2024a, section 3.2). The teacher's score is known.
That of the samples is learned beside them by a critic, a denoiser that is trained on nothing else.
As grad log p_t = (alpha x_0 - x_t) / sigma^2 with the estimate of x_0, the difference of two scores
is that of two estimates but for a factor.

No sample is compared with one of the teacher's, so none becomes the blurred mean of several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.core.process import Process

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


def loss(
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
