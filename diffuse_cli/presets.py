"""Named networks, and the network that is chosen where none is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffuse_cli.config import TrainConfig, UNetConfig
from diffuse_cli.errors import UsageError, lookup
from diffuse_cli.options import Size, from_dict

LOWEST = 8
"""Levels are added until the shorter side is at most this many pixels."""


@dataclass(frozen=True)
class Preset:
    """A network by name.

    Attributes:
        help: what it is for, with its parameters at 32x32 in colour.
        unet: fields of `UNetConfig`; the last multiplier repeats for larger images.
        train: fields of `TrainConfig` that go with it.
        published: a model of a paper, whose levels are as they are.
    """

    help: str
    unet: Mapping[str, Any]
    train: Mapping[str, Any]
    published: bool = False


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        "1.7 M parameters: minutes on a laptop's processor",
        {"width": 32, "multipliers": (1, 2, 2), "blocks": 2, "attention": (7, 8)},
        {"lr": 4e-3},
    ),
    "small": Preset(
        "6.9 M: hours on a processor, minutes on a GPU",
        {"width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (7, 8)},
        {"lr": 1e-3},
    ),
    "base": Preset(
        "29 M: one GPU",
        {
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 2,
            "attention": (7, 8, 14, 16),
            "head_width": 64,
        },
        {"lr": 4e-4},
    ),
    "large": Preset(
        "86 M: several GPUs",
        {
            "width": 192,
            "multipliers": (1, 2, 2, 2),
            "blocks": 3,
            "attention": (7, 8, 14, 16),
            "head_width": 64,
        },
        {"lr": 2e-4},
    ),
    "ddpm-cifar10": Preset(
        "35.7 M: the CIFAR-10 network of Ho et al. 2020",
        {
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 2,
            "attention": (16,),
            "scale_shift": False,
            "dropout": 0.1,
        },
        {
            "schedule": "linear",
            "target": "eps",
            "weighting": "none",
            "lr": 2e-4,
            "variance": "large",
            "batch_size": 128,
            "warmup": 5000,
            "ema_decay": 0.9999,
            "flip": True,
            "weight_decay": 0.0,
        },
        published=True,
    ),
}


def choose(size: Size, device: str) -> str:
    """The preset where none was named: what trains in a sensible time at this size and device."""
    if device == "cpu":
        return "tiny"
    return "small" if min(size) <= 32 else "base"


def network(config: TrainConfig, name: str, size: Size, channels: int) -> UNetConfig:
    """The network of a preset for images of `size`, with the fields of `config.unet` over it.

    Levels are added until the shorter side is at most 8. A size taken from the data halves only
    while both sides are even; a size that was typed must suit a preset that was typed.

    Raises:
        UsageError: no such preset, or it cannot halve the typed size.
    """
    preset = lookup(PRESETS, name, "--preset")
    fixed: dict[str, Any] = {"size": size, "channels": channels, "num_classes": 0}
    for field, value in {**fixed, "out_channels": channels}.items():
        given = config.unet.get(field)
        if given is not None and (tuple(given) if field == "size" else given) != value:
            raise UsageError(f"[unet] {field} = {given} does not suit these images: it is {value}")
    fields = {**preset.unet, **config.unet, **fixed}
    if not preset.published and "multipliers" not in config.unet:
        wanted = _halvings(size)
        allowed = next(n for n in range(wanted, -1, -1) if not any(s % 2**n for s in size))
        if allowed < wanted and config.size and config.preset:
            raise UsageError(
                f"--preset {name} halves {wanted} times, which --size {size[0]}x{size[1]} "
                "does not allow",
                f"Choose a multiple of {2**wanted}",
            )
        fields["multipliers"] = _levels(preset.unet["multipliers"], allowed + 1)
    return from_dict(UNetConfig, fields, "[unet]")


def _halvings(size: Size) -> int:
    return next(n for n in range(16) if min(size) >> n <= LOWEST)


def _levels(multipliers: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The first n multipliers, the last one repeated where there are fewer."""
    return (multipliers + multipliers[-1:] * n)[:n]
