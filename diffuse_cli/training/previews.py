"""Images of the averaged weights while training: previews and what KID is measured of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli import pictures
from diffuse_cli.conditioning import Condition, default_guidance
from diffuse_cli.config import SAMPLING_STEPS
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.memory import out_of_memory
from diffuse_cli.resolving import DrawSettings
from diffuse_cli.sampling import Drawing, draw, looks, stored
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.trainer import HELD_OUT_IMAGES, Trainer

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PREVIEW_IMAGES = 16


def draw_by_default(plan: Plan, net: Any, count: int, device: torch.device) -> Iterator[Drawing]:
    """Draw with a network of the plan's kind as `diffuse sample` does without options."""
    labels = tuple(range(plan.blueprint.conditions.num_classes))
    denoiser = plan.blueprint.denoiser(net)
    settings = DrawSettings(
        steps=min(SAMPLING_STEPS, denoiser.process.num_timesteps),
        condition=Condition(labels, default_guidance(plan.config.label_dropout))
        if labels
        else None,
        seed=plan.config.seed,
        batch_size=plan.room,
    )
    return draw(denoiser, settings, range(count), space=plan.blueprint.space, device=device)


def passes_of_step(plan: Plan) -> int:
    """Passes through the network that take as long as a step: the way back is two of them."""
    assert plan.config.batch_size is not None
    return 3 * plan.config.batch_size


def passes_of_denoising(plan: Plan, images: int) -> int:
    """Passes of a step of sampling; guidance takes each twice."""
    return images * (2 if plan.blueprint.conditions.num_classes else 1)


def passes_of_drawing(plan: Plan, images: int) -> int:
    """Passes that it takes to draw images."""
    steps = min(SAMPLING_STEPS, plan.config.num_timesteps)
    return steps * passes_of_denoising(plan, images)


def passes_of_preview(plan: Plan) -> int:
    """Passes that a preview takes, with the held-out loss."""
    return passes_of_drawing(plan, PREVIEW_IMAGES) + len(plan.held_out[:HELD_OUT_IMAGES])


def draw_preview(trainer: Trainer) -> Work[Image | None]:
    """A grid of samples; None if memory runs out."""
    space = trainer.plan.blueprint.space
    ended = []
    try:
        for drawing in draw_by_default(
            trainer.plan, trainer.ema_net, PREVIEW_IMAGES, trainer.device
        ):
            if drawing.done:
                ended.append(stored(space, drawing.state.x))
            yield Progress("preview", drawing.step, drawing.steps)
    except Exception as error:
        if not out_of_memory(error):
            raise
        yield Notice("out of memory while drawing the preview: it is left out", warning=True)
        return None
    return pictures.grid(looks(space, np.concatenate(ended)))
