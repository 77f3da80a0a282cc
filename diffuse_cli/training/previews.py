"""Images of the averaged weights while training: previews and what KID is measured of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli import pictures
from diffuse_cli.conditioning import Condition, default_guidance
from diffuse_cli.config import SAMPLING_STEPS
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.memory import out_of_memory
from diffuse_cli.resolving import DrawSettings
from diffuse_cli.sampling import Drawing, draw, looks, stored
from diffuse_cli.training.plan import Plan, given_inputs
from diffuse_cli.training.trainer import HELD_OUT_IMAGES, Trainer

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from PIL.Image import Image

    Array = npt.NDArray[Any]

PREVIEW_IMAGES, GIVEN_SHOWN = 16, 4
"""Samples of a preview, and the arrays that they are given, if any."""


def draw_by_default(
    plan: Plan, net: Any, count: int, device: torch.device, inputs: int | None = None
) -> Iterator[Drawing]:
    """Draw with a network of the plan's kind as `diffuse sample` does without options.

    A model that is given an array gets the first `inputs` of those of `shown_of`, or all, in turn,
    with their classes.
    """
    denoiser = plan.blueprint.denoiser(net)
    settings = DrawSettings(
        steps=min(SAMPLING_STEPS, denoiser.process.num_timesteps),
        condition=_condition(plan, shown_of(plan)[:inputs]),
        seed=plan.config.seed,
        batch_size=plan.room,
    )
    return draw(denoiser, settings, range(count), space=plan.blueprint.space, device=device)


def shown_of(plan: Plan) -> npt.NDArray[np.int64]:
    """The images whose given arrays are shown: those held out, or, if there are none, all."""
    return plan.held_out if len(plan.held_out) else plan.train


def _condition(plan: Plan, chosen: npt.NDArray[np.int64]) -> Condition | None:
    """What is told while training; to a model that is given an array, that of chosen images."""
    conditions = plan.blueprint.conditions
    if not conditions:
        return None
    labels: Iterable[int] = range(conditions.num_classes)
    if labels and conditions.given:
        own = plan.images.labels[chosen]
        labels = np.where(own >= 0, own, conditions.num_classes).tolist()
    scale = default_guidance(conditions, plan.config.label_dropout)
    return Condition(tuple(labels), scale, given_inputs(plan, chosen))


def passes_of_step(plan: Plan) -> int:
    """Passes through the network that take as long as a step: the way back is two of them."""
    assert plan.config.batch_size is not None
    return 3 * plan.config.batch_size


def passes_of_denoising(plan: Plan, images: int) -> int:
    """Passes of a step of sampling; guidance takes each twice."""
    conditions = plan.blueprint.conditions
    return images * (2 if conditions.num_classes and not conditions.given else 1)


def passes_of_drawing(plan: Plan, images: int) -> int:
    """Passes that it takes to draw images."""
    steps = min(SAMPLING_STEPS, plan.config.num_timesteps)
    return steps * passes_of_denoising(plan, images)


def passes_of_preview(plan: Plan) -> int:
    """Passes that a preview takes, with the held-out loss."""
    return passes_of_drawing(plan, PREVIEW_IMAGES) + len(plan.held_out[:HELD_OUT_IMAGES])


def draw_preview(trainer: Trainer) -> Work[Image | None]:
    """A grid of samples, or rows of what is given, samples, and the image; None if memory runs
    out."""
    plan, net, device = trainer.plan, trainer.ema_net, trainer.device
    space, inputs = plan.blueprint.space, GIVEN_SHOWN if plan.giver else None
    ended = []
    try:
        for drawing in draw_by_default(plan, net, PREVIEW_IMAGES, device, inputs):
            if drawing.done:
                ended.append(stored(space, drawing.state.x))
            yield Progress("preview", drawing.step, drawing.steps)
    except Exception as error:
        if not out_of_memory(error):
            raise
        yield Notice("out of memory while drawing the preview: it is left out", warning=True)
        return None
    samples = looks(space, np.concatenate(ended))
    return pictures.grid(samples) if plan.giver is None else _beside(plan, samples)


def _beside(plan: Plan, samples: Array) -> Image:
    """A row for each array that is given: it, its samples, and the image that belongs to it."""
    import torch

    giver, chosen = plan.giver, shown_of(plan)[:GIVEN_SHOWN]
    given = given_inputs(plan, chosen)
    assert giver is not None
    assert given is not None
    told = giver.look(given.at(range(len(chosen)), torch.device("cpu")))
    inputs, truths = looks(giver.shown, told), plan.images.stored[chosen]
    own = [samples[k :: len(chosen)] for k in range(len(chosen))]
    return pictures.rows(zip(inputs, own, looks(plan.blueprint.space, truths), strict=True))
