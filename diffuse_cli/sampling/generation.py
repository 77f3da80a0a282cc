"""Generate images with a model.

Noise is keyed by (seed, image, step), so image k of a seed is the same for any number of images,
batch size and number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.core import SAMPLERS, Denoise, Denoiser, Space, State
from diffuse_cli.core.guidance import clamp_denoised
from diffuse_cli.media import MEDIA, Array
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import DivergedError, Progress, Work, plural
from diffuse_cli.system.rng import image_noise
from diffuse_cli.system.team import ALONE, Team


@dataclass(frozen=True)
class BatchState:
    """A batch of images by index, with the sampler's state after `step` of `steps`."""

    indices: Sequence[int]
    step: int
    steps: int
    state: State

    @property
    def done(self) -> bool:
        """Whether the state is the last one."""
        return self.step == self.steps


def generate_batches(
    denoiser: Denoiser,
    settings: SamplingSettings,
    indices: Sequence[int],
    *,
    space: Space,
    device: torch.device,
    given: ConditioningInputs | None = None,
) -> Iterator[BatchState]:
    """Generate the images with these indices, one batch after another.

    Args:
        given: inputs of these images, which replace the condition's.

    Raises:
        InvalidArgument: more steps than the process has timesteps.
    """
    process, condition = denoiser.process, settings.condition
    times, denoise = settings.resolve_times(process), guide_denoiser(denoiser, settings)
    sample = partial(SAMPLERS[settings.sampler], **settings.options)
    for start in range(0, len(indices), settings.batch_size):
        batch = indices[start : start + settings.batch_size]

        def noise(k: int, batch: Sequence[int] = batch) -> Tensor:
            return image_noise(settings.seed, batch, k, space.shape, device)

        bound = condition.bind(denoise, batch, device, given) if condition else denoise
        x = settings.start_state(noise(-1), process, times[0])
        states = sample(bound, process, x, times, noise=noise)
        for step, state in enumerate(states, 1):
            yield BatchState(batch, step, len(times), state)


def guide_denoiser(denoiser: Denoiser, settings: SamplingSettings) -> Denoise:
    """Return the denoiser that a sampler calls, with guidance and kept in range.

    A conditional model still needs its conditions bound.
    """
    guided = settings.add_guidance(settings.set_variance(denoiser))
    return clamp_denoised(guided, denoiser, settings.threshold)


def collect(drawings: Iterator[BatchState], space: Space, total: int) -> Work[dict[int, Array]]:
    """Run `drawings` to the end, and return each sample, stored (C, *size), by its index.

    Raises:
        DivergedError: samples are not finite.
    """
    samples_by_index: dict[int, Array] = {}
    for drawing in drawings:
        part = len(drawing.indices) * drawing.step / drawing.steps
        if drawing.done:
            samples = to_stored(space, drawing.state.x)
            samples_by_index.update(zip(drawing.indices, samples, strict=True))
            part = 0
        step = f"step {drawing.step}/{drawing.steps}"
        yield Progress("sampling", int(len(samples_by_index) + part), total, step)
    return samples_by_index


def generate_all(
    denoiser: Denoiser,
    settings: SamplingSettings,
    indices: Sequence[int],
    *,
    space: Space,
    device: torch.device,
    team: Team = ALONE,
) -> Work[Array]:
    """Generate stored samples (N, C, *size) with these indices, a part of them in each process."""
    part = team.share(len(indices), settings.batch_size)
    indices = indices[part.start : part.stop]
    batches = generate_batches(denoiser, settings, indices, space=space, device=device)
    return team.gather_samples((yield from collect(batches, space, len(indices))))


def to_stored(space: Space, x: Tensor) -> Array:
    """Return samples (B, C, *size) of a model as stored numbers, on the CPU.

    Raises:
        DivergedError: samples are not finite.
    """
    stored = space.to_stored(x)
    finite = (x.isfinite() & stored.isfinite()).flatten(1).all(1)
    if broken := len(x) - int(finite.sum()):
        text = f"NaN or infinite values in {broken:,} of {plural(len(x), MEDIA[space.medium].one)}"
        hint = "Use more steps or another sampler, or train again with a lower --lr"
        raise DivergedError(text, hint).mark_local()
    numbers: Array = stored.cpu().numpy()
    return numbers.astype(np.uint16) if numbers.dtype == np.int32 else numbers
