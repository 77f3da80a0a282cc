"""Networks for tests: what one is made of in one call, and its weights and input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from oracles import generator
from torch import nn

from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import NETWORKS, Conditions, Space
from diffuse_cli.models.blueprint import Blueprint


@dataclass(frozen=True)
class Plan:
    """What `build` is given."""

    config: Any
    space: Space
    conditions: Conditions
    out_channels: int
    network: str = "unet"

    @property
    def attends(self) -> list[bool]:
        attends: list[bool] = self.config.attends(self.space.size)
        return attends

    @property
    def num_classes(self) -> int:
        return self.conditions.num_classes

    def blueprint(self, diffusion: DiffusionConfig) -> Blueprint:
        """With a process, what a model file describes: the output follows from the variance."""
        return Blueprint(
            space=self.space,
            network=self.network,
            config=self.config,
            conditions=self.conditions,
            diffusion=diffusion,
        )

    def build(self) -> Any:
        module = NETWORKS[self.network]
        return module.build(self.config, self.space, self.conditions, self.out_channels)


def plan(
    size: int | tuple[int, ...] = 32,
    channels: int = 3,
    out_channels: int | None = None,
    num_classes: int = 0,
    network: str = "unet",
    **settings: Any,
) -> Plan:
    """A network of these settings; one number is the side of a square."""
    return Plan(
        NETWORKS[network].Config(**settings),
        Space(channels=channels, size=(size, size) if isinstance(size, int) else size),
        Conditions(classes=tuple(f"class {k}" for k in range(num_classes))),
        out_channels or channels,
        network,
    )


def randomized(made: Plan) -> Any:
    """A network none of whose weights is zero."""
    net: nn.Module = made.build()
    g = generator(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            fan = p[0].numel() if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim == 1 else fan**-0.5))
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return net.eval()


def batch(made: Plan, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and timesteps."""
    x = torch.randn(n, *made.space.shape, generator=generator(2))
    return x, torch.tensor([3.0, 977.0, 0.0, 250.25])[:n]
