"""Which class each image of a conditional model is of, and how strongly it is guided there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli.config import GUIDANCE, DrawConfig
from diffuse_cli.core.guidance import guide, interval
from diffuse_cli.errors import UsageError, lookup

if TYPE_CHECKING:
    from diffuse_cli.core.denoiser import Denoise
    from diffuse_cli.core.process import Process
    from diffuse_cli.modelfile import Model


@dataclass(frozen=True)
class Condition:
    """Classes for the images of a sample, and their guidance.

    Attributes:
        labels: the classes that images take in turn: image k has the k-th, and so on around.
        scale: 1 is the conditional model, 0 the unconditional.
        noise_levels: sigma / alpha between which guidance acts; everywhere where None.
    """

    labels: tuple[int, ...]
    scale: float = GUIDANCE
    noise_levels: tuple[float, float] | None = None

    def label(self, index: int) -> int:
        """The class of an image."""
        return self.labels[index % len(self.labels)]

    def guided(self, denoise: Denoise, process: Process) -> Denoise:
        """`denoise` with guidance; it is to be called with `label`."""
        whole = guide(denoise, self.scale)
        if self.noise_levels is None:
            return whole
        return interval(whole, denoise, process, *self.noise_levels)

    def bind(self, guided: Denoise, indices: Sequence[int], device: torch.device) -> Denoise:
        """`guided` for a batch of images, each with its class."""
        labels = torch.tensor([self.label(i) for i in indices], device=device)
        return partial(guided, label=labels)


def condition(config: DrawConfig, model: Model, names: Sequence[str] = ()) -> Condition | None:
    """The condition that a model is sampled under: the named classes, or all in turn.

    The guidance scale is the one that is given, else the one that the model file recommends, else
    the default. None for a model without classes.

    Raises:
        UsageError: no such class, or classes or guidance of a model without them.
    """
    if not model.blueprint.conditions.classes:
        for flag, given in (
            ("--class", names),
            ("--guidance", config.guidance is not None),
            ("--guidance-interval", config.guidance_interval),
        ):
            if given:
                raise UsageError(
                    f"{flag}: the model was trained without classes", "Train one with --classes"
                )
        return None
    every = {name: i for i, name in enumerate(model.blueprint.conditions.classes)}
    chosen = tuple(lookup(every, name, "--class") for name in names)
    scale = config.guidance
    if scale is None and model.sampling is not None:
        scale = model.sampling.guidance
    if scale is None:
        scale = default_guidance(model.training.get("label_dropout"))
    return Condition(chosen or tuple(every.values()), scale, config.guidance_interval)


def default_guidance(label_dropout: Any) -> float:
    """The guidance scale where none is given: 1 for a model that was shown the class of every
    image, and so has learned no unconditional prediction."""
    return 1.0 if label_dropout == 0 else GUIDANCE
