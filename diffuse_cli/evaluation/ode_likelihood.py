"""Estimate the bits per dimension of real images by the probability-flow equation."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffuse_cli.core import Denoiser
from diffuse_cli.core.probability_flow import log_densities
from diffuse_cli.evaluation.image_sets import LabeledSamples, prepare_inputs
from diffuse_cli.evaluation.metric_inputs import EvaluationRun
from diffuse_cli.evaluation.variational_bound import iterate_batches
from diffuse_cli.media import Array
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.system import Progress, Work
from diffuse_cli.system.rng import draw_noise, philox

TASK = "solving the probability-flow equation"
"""The name of the task in progress messages."""

STEPS = 64
"""Default number of the solver's steps."""


def make_ode_bits(evaluation: EvaluationRun) -> Work[None]:
    """Estimate the likelihood of each real image by the probability-flow equation."""
    config, loaded, images = evaluation.config, evaluation.loaded, evaluation.real
    assert loaded is not None
    bits = yield from measure_ode_bits(
        loaded.denoiser,
        images,
        loaded.model.blueprint,
        evaluation.team.share(len(images), config.batch_size),
        given=prepare_inputs(loaded, images, config.seed),
        steps=config.ode_steps or STEPS,
        seed=config.seed,
        batch_size=config.batch_size,
        device=evaluation.accelerator.device,
    )
    evaluation.ode_bits = np.concatenate(evaluation.team.gather(bits))


def measure_ode_bits(
    denoiser: Denoiser,
    images: LabeledSamples,
    blueprint: Blueprint,
    indices: range,
    *,
    given: ConditioningInputs | None = None,
    steps: int,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Work[Array]:
    """Estimate the bits per dimension of the images with these indices, (N, 2).

    Levels become floats by adding uniform noise as wide as a level, so that the mean over the noise
    is a bound on the bits of the level (Theis et al. 2016). The second column is the result minus
    its limit for many steps, estimated from half the steps (Richardson extrapolation).
    """
    space, rows, runs = blueprint.space, [np.zeros((0, 2))], (steps, steps // 2)
    for batch, stored, cond in iterate_batches(
        images, blueprint, indices, given, batch_size, device
    ):
        stored, step = stored.float(), 0
        densities: list[torch.Tensor] = []
        if space.levels is not None:
            stored = stored + _draw_uniform(seed, batch, space.shape).to(device) - 0.5
        x0, probe = space.to_model(stored), _draw_signs(seed, batch, space.shape).to(device)
        for k, n in enumerate(runs):
            for density in log_densities(denoiser, x0, steps=n, probes=[probe], **cond):
                densities[k:] = [density]
                step += 1
                part = len(x0) * step // sum(runs)
                yield Progress(TASK, batch.start - indices.start + part, len(indices))
        # Metal has no float64.
        fine, coarse = (nats.cpu().double().numpy() / x0[0].numel() for nats in densities)
        slope = space.log_slope(stored).flatten(1).mean(1).cpu().double().numpy()
        error = (fine - coarse) / ((runs[0] / runs[1]) ** 2 - 1)
        rows.append(np.stack([-fine - slope, error], 1) / math.log(2))
    return np.concatenate(rows)


def _draw_uniform(seed: int, indices: range, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw uniform noise in [0, 1) for each sample, (B, *shape)."""
    draws = (philox(seed, "ode-level", i).random(shape, dtype=np.float32) for i in indices)
    return torch.from_numpy(np.stack([*draws]))


def _draw_signs(seed: int, indices: range, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw 1 or -1 for each value of each sample, (B, *shape)."""
    noise = torch.stack([draw_noise(seed, "ode-probe", i, shape=shape) for i in indices])
    return torch.ones_like(noise).copysign(noise)
