"""The classes and guidance of the images that are drawn from a conditional model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli.config import GUIDANCE, DrawConfig
from diffuse_cli.errors import UsageError, lookup

if TYPE_CHECKING:
    from diffuse_cli.core.denoiser import Denoise
    from diffuse_cli.modelfile import Model


@dataclass(frozen=True)
class Condition:
    """Classes and guidance.

    Attributes:
        labels: of the images, in turn: image k has label k modulo their number.
        scale: 1 is the conditional model, 0 the unconditional.
    """

    labels: tuple[int, ...]
    scale: float = GUIDANCE

    def label(self, index: int) -> int:
        """The label of an image."""
        return self.labels[index % len(self.labels)]

    def bind(self, guided: Denoise, indices: Sequence[int], device: torch.device) -> Denoise:
        """`guided` with the labels of a batch of images."""
        labels = torch.tensor([self.label(i) for i in indices], device=device)
        return partial(guided, label=labels)


def condition(config: DrawConfig, model: Model, names: Sequence[str] = ()) -> Condition | None:
    """The named classes, or all; None for a model without classes.

    The guidance scale is the given one, else the model file's recommendation, else the default.

    Raises:
        UsageError: no such class, or classes or guidance for a model without classes.
    """
    classes = model.blueprint.conditions.classes
    if not classes:
        for flag, given in (
            ("--class", names),
            ("--guidance", config.guidance is not None),
        ):
            if given:
                raise UsageError(
                    f"{flag}: the model was trained without classes", "Train one with --classes"
                )
        return None
    every = {name: i for i, name in enumerate(classes)}
    chosen = tuple(lookup(every, name, "--class") for name in names)
    scale = config.guidance
    if scale is None and model.sampling is not None:
        scale = model.sampling.guidance
    if scale is None:
        scale = default_guidance(model.training.get("label_dropout"))
    return Condition(chosen or tuple(every.values()), scale)


def default_guidance(label_dropout: Any) -> float:
    """The default guidance scale: 1 if no label was dropped in training, so the model has no
    unconditional prediction."""
    return 1.0 if label_dropout == 0 else GUIDANCE
