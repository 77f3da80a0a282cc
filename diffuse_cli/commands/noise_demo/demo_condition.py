"""What `noise-demo --model` tells a model that was trained with --given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.config.noise_demo_options import DemoConfig
from diffuse_cli.media import MEDIA, Array, ReadSettings, render_samples, settings_for
from diffuse_cli.models.image_conditioning import Conditioner, degraded_inputs, stored_inputs
from diffuse_cli.sampling.generation import LoadedModel
from diffuse_cli.sampling.tasks.task_inputs import read_picture, rgb
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work


@dataclass(frozen=True)
class DemoCondition:
    """Conditioning input of a model for an image.

    Attributes:
        what: `pairs`, or the degradation that made it of the image.
        given: the keyword of the denoiser, (1, C', *size).
        shown: a picture of it, uint8 (1 or 3, H, W).
    """

    what: str
    given: Tensor
    shown: Array


def read_condition(
    config: DemoConfig, image: Array, loaded: LoadedModel, device: torch.device
) -> Work[DemoCondition | None]:
    """Return the conditioning image (C, H, W); None for an unconditional model.

    Its degradation is made of the image. The other half of a pair is --given.

    Raises:
        UsageError: --given is missing, or has no use.
        DataError: it cannot be read.
    """
    encoder = Conditioner.from_blueprint(loaded.model.blueprint)
    if encoder is None:
        if config.given is not None:
            raise UsageError("--given: the model was trained without", "Leave it out")
        return None
    if encoder.degradation is not None:
        if config.given is not None:
            raise UsageError(
                f"--given: the model is conditioned on {encoder.given.what} of the "
                f"{MEDIA[loaded.space.medium].one}",
                "Leave it out",
            )
        inputs = degraded_inputs(encoder, image[None], config.seed, "given")
    else:
        if config.given is None:
            text = "the model was trained on pairs"
            raise UsageError(text, "Pass --given FILE, the conditioning image")
        inputs = stored_inputs(encoder, (yield from _read_pair(config, encoder, loaded))[None])
    given = inputs.encode([0], device)
    return DemoCondition(
        encoder.given.what,
        given,
        render_samples(encoder.rendered_space, encoder.render_input(given))[0],
    )


def _read_pair(config: DemoConfig, encoder: Conditioner, loaded: LoadedModel) -> Work[Array]:
    """Return the other half of the pair, (C, H, W), fitted as the image is."""
    assert config.given is not None
    own, fit = settings_for(encoder.input_space), config.fit or loaded.fit
    asked = ReadSettings(**own, background=rgb(str(config.background)), fit=fit)
    found = read_picture(config.given, encoder.input_space.medium, asked)
    shown = files.show(config.given)
    yield from (Notice(f"{shown}: {text}", warning=True) for text in found.remarks)
    return np.array(found.values)
