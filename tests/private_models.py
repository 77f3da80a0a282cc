"""Models for tests of what leaves, and a network that is traced in no time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from networks import randomized
from torch import Tensor, nn

from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import Conditions, Space
from diffuse_cli.core.data_gaussian import DataGaussian
from diffuse_cli.core.networks.layers import ConditionedNetwork, sinusoids
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.core.settings import Settings
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint

SMALL = Config(width=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
SMALLEST = replace(SMALL, multipliers=(1,), attention=())


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """The configuration of `Pointwise`."""


class Pointwise(ConditionedNetwork):
    """Maps the channels of each pixel by themselves, with all conditions."""

    def __init__(self, space: Space, conditions: Conditions, out_channels: int) -> None:
        super().__init__(conditions)
        self._embed(conditions, 8, 8)
        self.mix = nn.Linear(space.channels + self.given_channels, out_channels)
        self.add = nn.Linear(8, out_channels)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        given: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        told = self.add(self.embed_conditions(sinusoids(t, 8), label, row))
        y = self.mix(self.concat_given(x, given).flatten(2).mT) + told[:, None]
        return y.mT.reshape(x.shape[0], -1, *x.shape[2:])


POINTWISE = SimpleNamespace(
    Config=NoSettings,
    build=lambda config, space, conditions, out=None: Pointwise(
        space, conditions, out or space.channels
    ),
    describe=lambda config, space: ["one layer"],
)
UNTOLD = Conditions()
PICTURES = Space(channels=3, size=(8, 8))


def model_of(
    config: Settings = SMALL,
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
