"""Models for tests of what leaves."""

from __future__ import annotations

from typing import Any

from networks import randomized

from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import Conditions, Space
from diffuse_cli.core.data_gaussian import DataGaussian
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint

SMALL = Config(width=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
UNTOLD = Conditions()
PICTURES = Space(channels=3, size=(8, 8))


def model_of(
    config: Config = SMALL,
    space: Space = PICTURES,
    conditions: Conditions = UNTOLD,
    diffusion: DiffusionConfig | None = None,
    network: str = "unet",
    gaussian: DataGaussian | None = None,
    **more: Any,
) -> model_file.StoredModel:
    """A model whose weights are nowhere zero. It corrects the Wiener filter of a Gaussian."""
    own = Blueprint(
        space=space,
        network=network,
        config=config,
        conditions=conditions,
        diffusion=diffusion or DiffusionConfig(),
        wiener=gaussian is not None,
        gaussian=gaussian,
    )
    ema = randomized(own).state_dict()
    return model_file.StoredModel(blueprint=own, ema=ema, **more)
