"""Generate samples of the EMA weights while training, for previews and the KID."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from diffuse_cli.config.sample_options import GAUSSIAN, SAMPLER, SAMPLING_STEPS, SamplerChoice
from diffuse_cli.media import Array, Indices, figures, render_samples
from diffuse_cli.sampling.conditioning import Condition, default_guidance
from diffuse_cli.sampling.generation import generate_batches, to_stored
from diffuse_cli.sampling.sampling_settings import SamplingSettings, starts_from_gaussian
from diffuse_cli.system import Progress, Work
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.trainer import Trainer

PREVIEW_IMAGES, GIVEN_SHOWN = 16, 4
"""Samples of a preview, and the images that condition them, if any."""

MOST = 64
"""The most samples to generate at a time."""


def make_settings(
    plan: Plan, count: int, inputs: int | None = None, classes: Sequence[int] = ()
) -> SamplingSettings:
    """Return the default settings of `diffuse sample` for `count` samples.

    A model that is conditioned on images or metadata cycles through the conditions of the images of
    `preview_images`.

    Args:
        inputs: the number of images of `preview_images` to use. None for all.
        classes: the classes to cycle through, for a model with no other condition. All by default.
    """
    condition, batch_size = _make_condition(plan, inputs, count, classes), min(MOST, plan.room)
    base = SamplingSettings(condition=condition, seed=plan.config.seed, batch_size=batch_size)
    return base.with_choice(default_setting(plan), plan.blueprint.gaussian)


def default_setting(plan: Plan) -> SamplerChoice:
    """Return the setting of `diffuse sample` for a model without a recommendation."""
    if plan.teacher:
        return plan.teacher.sampling(plan.blueprint)
    steps = min(SAMPLING_STEPS, plan.config.num_timesteps)
    start = GAUSSIAN if starts_from_gaussian(plan.blueprint, steps) else None
    return SamplerChoice(SAMPLER, steps, guidance_of(plan), start=start)


def preview_images(plan: Plan, count: int | None = None) -> Indices:
    """Return the images whose conditions are used: the held-out images, or all without them.

    Args:
        count: the number of images: the first, or, for a model conditioned only on metadata, evenly
            spaced from the 10th to the 90th percentile of the first column.
    """
    chosen = plan.data.held_out if len(plan.data.held_out) else plan.data.train
    if count is None or plan.encoder or plan.data.images.rows is None:
        return chosen[:count]
    codes = plan.data.images.rows[chosen, 0]
    ordered = chosen[np.argsort(codes, kind="stable")][: int((~np.isnan(codes)).sum())]
    if len(ordered) == 0:
        return chosen[:count]
    places = np.linspace(0.1, 0.9, count) * (len(ordered) - 1)
    return ordered[np.unique(places.round().astype(np.int64))]


def _make_condition(
    plan: Plan, inputs: int | None, count: int, classes: Sequence[int]
) -> Condition | None:
    """Make the condition of samples: a cycle of classes, or the conditions of images."""
    conditions, scale = plan.blueprint.conditions, guidance_of(plan)
    if scale is None:
        return None
    if not uses_images(plan):
        return Condition(tuple(classes or range(conditions.num_classes)), scale)
    chosen = plan.data.find_readable(preview_images(plan, inputs)[:count])
    labels: Sequence[int] = ()
    rows = plan.data.images.rows
    if conditions.num_classes:
        image_labels = plan.data.images.labels[chosen]
        labels = np.where(image_labels >= 0, image_labels, conditions.num_classes).tolist()
    codes = () if rows is None else tuple(map(tuple, rows[chosen].tolist()))
    return Condition(tuple(labels), scale, plan.inputs(chosen), rows=codes)


def guidance_of(plan: Plan) -> float | None:
    """Return the default guidance scale, or None for an unconditional model."""
    conditions = plan.blueprint.conditions
    if not conditions:
        return None
    # The guidance of a teacher is in the weights.
    return 1.0 if plan.teacher else default_guidance(conditions, plan.config.label_dropout)


def uses_images(plan: Plan) -> bool:
    """Whether previews use the conditions of images: conditioning images or metadata."""
    conditions = plan.blueprint.conditions
    return conditions.given is not None or conditions.table is not None


def passes_of_step(plan: Plan) -> int:
    """Return the forward passes that take as long as a step: a backward pass counts as two."""
    return 3 * plan.config.images_per_step


def passes_of_drawing(plan: Plan, images: int) -> int:
    """Return the forward passes to generate a number of images. Guidance doubles them."""
    passes = 1 if guidance_of(plan) in (None, 1) else 2
    return default_setting(plan).steps * images * passes


def passes_of_preview(plan: Plan) -> int:
    """Return the forward passes of a preview and its held-out loss."""
    return passes_of_drawing(plan, PREVIEW_IMAGES) + len(plan.measured) * plan.evaluations


def draw_preview(trainer: Trainer) -> Work[Image]:
    """Make a grid of samples, or rows of conditioning images, samples and real images."""
    plan, device, indices = trainer.plan, trainer.device, range(PREVIEW_IMAGES)
    space, denoiser = plan.blueprint.space, plan.blueprint.denoiser(trainer.ema_net)
    settings = make_settings(plan, len(indices), GIVEN_SHOWN if uses_images(plan) else None)
    batches = []
    for drawing in generate_batches(denoiser, settings, indices, space=space, device=device):
        if drawing.done:
            batches.append(to_stored(space, drawing.state.x))
        yield Progress("preview", drawing.step, drawing.steps)
    samples = render_samples(space, np.concatenate(batches))
    return _comparison(plan, samples) if uses_images(plan) else figures.arrange_grid(samples)


def _comparison(plan: Plan, samples: Array) -> Image:
    """Make a row for each image: its conditioning image if any, samples, and the image."""

    encoder, chosen = plan.encoder, plan.data.find_readable(preview_images(plan, GIVEN_SHOWN))
    given, space = plan.inputs(chosen), plan.blueprint.space
    truths = render_samples(space, plan.data.images.stored[chosen])
    rows = [[*samples[k :: len(chosen)], truths[k]] for k in range(len(chosen))]
    if encoder and given:
        pictures = encoder.look(given.encode(range(len(chosen))))
        rows = [[first, *row] for first, row in zip(pictures, rows, strict=True)]
    return figures.arrange_rows(rows)
