"""Images of the averaged weights while training: previews and what KID is measured of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.config.sample_options import SAMPLER, SAMPLING_STEPS
from diffuse_cli.media import figures, looks
from diffuse_cli.sampling.conditioning import Condition, default_guidance
from diffuse_cli.sampling.generation import Drawing, draw, stored
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.training.feed import readable
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.trainer import Trainer, evaluations, held_out_images

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from PIL.Image import Image

    Array = npt.NDArray[Any]

PREVIEW_IMAGES, GIVEN_SHOWN = 16, 4
"""Samples of a preview, and the arrays that they are given, if any."""

MOST = 64
"""Most samples to draw at a time."""


def draw_by_default(
    plan: Plan,
    net: Any,
    count: int,
    device: torch.device,
    inputs: int | None = None,
    classes: Sequence[int] = (),
) -> Iterator[Drawing]:
    """Draw with a network of the plan's kind as `diffuse sample` does without options.

    A model that is given an array or told columns is given and told what belongs to each of
    `shown_of` in turn, or to so many of them, `inputs`.

    Args:
        classes: those of a model that is told nothing else, in turn, if not every one.
    """
    denoiser = plan.blueprint.denoiser(net)
    choice = plan.teacher.sampling(plan.blueprint) if plan.teacher else None
    settings = DrawSettings(
        sampler=choice.sampler if choice else SAMPLER,
        steps=min(choice.steps if choice else SAMPLING_STEPS, denoiser.process.num_timesteps),
        condition=_condition(plan, readable(plan.data, shown_of(plan, inputs)[:count]), classes),
        seed=plan.config.seed,
        batch_size=min(MOST, plan.room),
    )
    return draw(denoiser, settings, range(count), space=plan.blueprint.space, device=device)


def shown_of(plan: Plan, count: int | None = None) -> npt.NDArray[np.int64]:
    """The images whose given arrays or columns are drawn from: those held out, or, if there are
    none, all.

    Args:
        count: so many of them: the first, or, of a model that is told columns alone, from the 10th
            to the 90th percentile of the first column.
    """
    chosen = plan.data.held_out if len(plan.data.held_out) else plan.data.train
    if count is None or plan.giver or plan.data.images.rows is None:
        return chosen[:count]
    codes = plan.data.images.rows[chosen, 0]
    told = chosen[np.argsort(codes, kind="stable")][: int((~np.isnan(codes)).sum())]
    if len(told) == 0:
        return chosen[:count]
    places = np.linspace(0.1, 0.9, count) * (len(told) - 1)
    return told[np.unique(places.round().astype(np.int64))]


def _condition(
    plan: Plan, chosen: npt.NDArray[np.int64], classes: Sequence[int]
) -> Condition | None:
    """What is told while training: classes in turn, or all that belongs to chosen images."""
    conditions = plan.blueprint.conditions
    if not conditions:
        return None
    labels: Iterable[int] = classes or range(conditions.num_classes)
    rows = plan.data.images.rows
    if labels and shows_images(plan):
        own = plan.data.images.labels[chosen]
        labels = np.where(own >= 0, own, conditions.num_classes).tolist()
    # The guidance of a teacher is in the weights.
    scale = 1.0 if plan.teacher else default_guidance(conditions, plan.config.label_dropout)
    told = () if rows is None else tuple(map(tuple, rows[chosen].tolist()))
    return Condition(tuple(labels), scale, plan.inputs(chosen), rows=told)


def shows_images(plan: Plan) -> bool:
    """Whether previews are drawn for some images, each by what it is given or told."""
    return plan.giver is not None or plan.data.images.rows is not None


def passes_of_step(plan: Plan) -> int:
    """Passes through the network that take as long as a step: the way back is two of them."""
    assert plan.config.batch_size is not None
    return 3 * plan.config.batch_size


def passes_of_denoising(plan: Plan, images: int) -> int:
    """Passes of a step of sampling; guidance takes each twice."""
    conditions = plan.blueprint.conditions
    guided = conditions and default_guidance(conditions, plan.config.label_dropout) != 1
    return images * (2 if guided else 1)


def passes_of_drawing(plan: Plan, images: int) -> int:
    """Passes that it takes to draw images."""
    steps = min(SAMPLING_STEPS, plan.config.num_timesteps)
    return steps * passes_of_denoising(plan, images)


def passes_of_preview(plan: Plan) -> int:
    """Passes that a preview takes, with the held-out loss."""
    measured = len(plan.data.held_out[: held_out_images(plan.config)])
    return passes_of_drawing(plan, PREVIEW_IMAGES) + measured * evaluations(plan.config)


def draw_preview(trainer: Trainer) -> Work[Image]:
    """A grid of samples, or rows of what is given, samples, and the image."""
    plan, net, device = trainer.plan, trainer.ema_net, trainer.device
    space, inputs = plan.blueprint.space, GIVEN_SHOWN if shows_images(plan) else None
    ended = []
    for drawing in draw_by_default(plan, net, PREVIEW_IMAGES, device, inputs):
        if drawing.done:
            ended.append(stored(space, drawing.state.x))
        yield Progress("preview", drawing.step, drawing.steps)
    samples = looks(space, np.concatenate(ended))
    return _beside(plan, samples) if shows_images(plan) else figures.grid(samples)


def _beside(plan: Plan, samples: Array) -> Image:
    """A row for each of some images: what is given of it, if anything is, samples, and itself."""
    import torch

    giver, chosen = plan.giver, readable(plan.data, shown_of(plan, GIVEN_SHOWN))
    given, space = plan.inputs(chosen), plan.blueprint.space
    truths = looks(space, plan.data.images.stored[chosen])
    rows = [[*samples[k :: len(chosen)], truths[k]] for k in range(len(chosen))]
    if giver and given:
        told = giver.look(given.at(range(len(chosen)), torch.device("cpu")))
        rows = [[first, *row] for first, row in zip(looks(giver.shown, told), rows, strict=True)]
    return figures.rows(rows)
