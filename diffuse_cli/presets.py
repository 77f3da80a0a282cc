"""Named networks, and the network that is chosen where none is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffuse_cli.config import TrainConfig, UNetConfig
from diffuse_cli.errors import UsageError, lookup
from diffuse_cli.options import from_dict
from diffuse_cli.parsing import Size

LOWEST = 8
"""Levels are added until the shorter side is at most this many pixels."""


@dataclass(frozen=True)
class Preset:
    """A network by name.

    Attributes:
        help: what it is for, with its parameters: at 32x32 in colour, or as published.
        unet: fields of `UNetConfig`; the last multiplier repeats for larger images.
        train: fields of `TrainConfig` that go with it.
        published: a model of a paper, whose levels are as they are; where its images are larger
            than those that are made where no size is given, its size is in `train`.
    """

    help: str
    unet: Mapping[str, Any]
    train: Mapping[str, Any]
    published: bool = False


GROUPS, CHANNELS_A_GROUP = 32, 16
"""Groups of a published network, and channels of a group of ours: the best of Wu & He 2018 (table
3), and as many as fill a register of a processor in half precision. Both give way to a width that
they do not divide."""

DDPM: dict[str, Any] = {
    "scale_shift": False,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
}
"""What the networks of Ho et al. 2020 share; the last four are TensorFlow's, as their code has
them."""

ADM: dict[str, Any] = {"attention": (8, 16, 32), "resblock_updown": True}
"""What the ImageNet networks of Dhariwal & Nichol 2021 share."""

DDPM_TRAINING: dict[str, Any] = {
    "schedule": "linear",
    "target": "eps",
    "loss": "simple",
    "weighting": "none",
    "warmup": 5000,
    "ema_decay": 0.9999,
    "flip": True,
    "weight_decay": 0.0,
}
"""Ho et al. 2020, appendix B. Their learning rate stays where it is; here it falls to 0."""

OPENAI_TRAINING: dict[str, Any] = {
    "target": "eps",
    "variance": "learned",
    "loss": "hybrid",
    "weighting": "none",
    "lr": 1e-4,
    "batch_size": 128,
    "warmup": 0,
    "ema_decay": 0.9999,
    "weight_decay": 0.0,
    "grad_clip": 1e6,
}
"""Nichol & Dhariwal 2021, appendix A, and the READMEs of improved- and guided-diffusion. They do
not clip the gradient, and their learning rate stays where it is; here it falls to 0."""

IDDPM_TRAINING = {**OPENAI_TRAINING, "schedule": "cosine", "num_timesteps": 4000}
ADM_TRAINING = {**OPENAI_TRAINING, "schedule": "linear", "batch_size": 256, "flip": True}

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        "0.4 M parameters: minutes on a laptop's processor",
        {"width": 32, "multipliers": (1, 1, 1), "blocks": 1, "attention": ()},
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
            **DDPM,
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 2,
            "attention": (16,),
            "dropout": 0.1,
        },
        {**DDPM_TRAINING, "lr": 2e-4, "variance": "large", "batch_size": 128},
        published=True,
    ),
    "ddpm-celebahq-256": Preset(
        "114 M: the CelebA-HQ 256x256 network of Ho et al. 2020",
        {
            **DDPM,
            "width": 128,
            "multipliers": (1, 1, 2, 2, 4, 4),
            "blocks": 2,
            "attention": (16,),
        },
        {**DDPM_TRAINING, "lr": 2e-5, "variance": "small", "batch_size": 64, "size": 256},
        published=True,
    ),
    "iddpm-cifar10": Preset(
        "52.5 M: the CIFAR-10 network of Nichol & Dhariwal 2021",
        {
            "width": 128,
            "multipliers": (1, 2, 2, 2),
            "blocks": 3,
            "attention": (8, 16),
            "heads": 4,
            "dropout": 0.3,
        },
        IDDPM_TRAINING,
        published=True,
    ),
    "iddpm-imagenet64": Preset(
        "121 M: the ImageNet 64x64 network of Nichol & Dhariwal 2021",
        {
            "width": 128,
            "multipliers": (1, 2, 3, 4),
            "blocks": 3,
            "attention": (8, 16),
            "heads": 4,
        },
        IDDPM_TRAINING,
        published=True,
    ),
    "adm-64": Preset(
        "296 M with 1000 classes: the ImageNet 64x64 network of Dhariwal & Nichol 2021",
        {
            **ADM,
            "width": 192,
            "multipliers": (1, 2, 3, 4),
            "blocks": 3,
            "head_width": 64,
            "dropout": 0.1,
        },
        {**ADM_TRAINING, "schedule": "cosine", "lr": 3e-4, "batch_size": 2048},
        published=True,
    ),
    "adm-128": Preset(
        "422 M with 1000 classes: the ImageNet 128x128 network of Dhariwal & Nichol 2021",
        {**ADM, "width": 256, "multipliers": (1, 1, 2, 3, 4), "blocks": 2, "heads": 4},
        {**ADM_TRAINING, "size": 128},
        published=True,
    ),
    "adm-256": Preset(
        "554 M with 1000 classes: the ImageNet 256x256 network of Dhariwal & Nichol 2021",
        {**ADM, "width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "head_width": 64},
        {**ADM_TRAINING, "size": 256},
        published=True,
    ),
}


def choose(size: Size, device: str) -> str:
    """The preset where none was named: what trains in a sensible time at this size and device."""
    if device == "cpu":
        return "tiny"
    return "small" if min(size) <= 32 else "base"


def network(
    config: TrainConfig,
    name: str,
    size: Size,
    channels: int,
    *,
    out_channels: int | None = None,
    num_classes: int = 0,
) -> UNetConfig:
    """The network of a preset for images of `size`, with the fields of `config.unet` over it.

    `out_channels` are those that the variance needs, `channels` where None. `config.width` stands
    for the preset's width; groups and heads that `config.unet` does not give are made to divide it.

    Levels are added until the shorter side, in patches, is at most 8. A size taken from the data
    halves only while both sides are even; a size that was typed must suit a preset that was typed.

    Raises:
        UsageError: no such preset, it cannot halve the size, or `config.unet` has another width.
    """
    preset = lookup(PRESETS, name, "--preset")
    fixed: dict[str, Any] = {
        "size": size,
        "channels": channels,
        "out_channels": channels if out_channels is None else out_channels,
        "num_classes": num_classes,
    }
    for field, value in fixed.items():
        given = config.unet.get(field)
        if given is not None and (tuple(given) if field == "size" else given) != value:
            raise UsageError(f"[unet] {field} = {given} does not suit these images: it is {value}")
    if config.width is not None:
        if config.unet.get("width", config.width) != config.width:
            raise UsageError(
                f"[unet] width = {config.unet['width']} differs from width = {config.width}",
                "Leave one of them out",
            )
        fixed["width"] = config.width
    fields = {**preset.unet, **config.unet, **fixed}
    if not preset.published and "multipliers" not in config.unet:
        patch = fields.get("patch", 1)
        patches = (size[0] // patch, size[1] // patch)
        wanted = _halvings(patches)
        allowed = next(n for n in range(wanted, -1, -1) if not any(s % 2**n for s in patches))
        if allowed < wanted and config.size and config.preset:
            raise UsageError(
                f"--preset {name} halves {wanted} times, which --size {size[0]}x{size[1]} "
                "does not allow",
                f"Choose a multiple of {patch * 2**wanted}",
            )
        fields["multipliers"] = _levels(preset.unet["multipliers"], allowed + 1)
    return _divided(fields, config.unet, name)


def groups_at(width: int, preset: str | None) -> int:
    """The groups of the normalisation where none are given, in a preset of this base width."""
    published = preset in PRESETS and PRESETS[preset].published
    return _largest_divisor(width, GROUPS if published else max(1, width // CHANNELS_A_GROUP))


def _divided(fields: Mapping[str, Any], given: Mapping[str, Any], preset: str) -> UNetConfig:
    """The network of `fields`, where groups and heads that are not `given` divide its widths.

    The heads are the largest number that does, at most the preset's number or width of them.
    """
    heads = {name: fields.get(name) for name in ("heads", "head_width")}
    if any(given.get(name) is not None for name in heads):
        heads = {name: given.get(name) for name in heads}
    config = from_dict(UNetConfig, {**fields, **dict.fromkeys(heads), "groups": 1}, "[unet]")
    attending = [w for w, attends in zip(config.widths, config.attends, strict=True) if attends]
    shared = math.gcd(*attending, config.widths[-1])
    for name, most in heads.items():
        if most is not None and name not in given:
            heads[name] = _largest_divisor(shared, most)
    groups = given.get("groups", groups_at(config.width, preset))
    return from_dict(UNetConfig, {**vars(config), **heads, "groups": groups}, "[unet]")


def _largest_divisor(number: int, most: int) -> int:
    return next(n for n in range(most, 0, -1) if number % n == 0)


def _halvings(size: Size) -> int:
    return next(n for n in range(16) if min(size) >> n <= LOWEST)


def _levels(multipliers: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The first n multipliers, the last one repeated where there are fewer."""
    return (multipliers + multipliers[-1:] * n)[:n]
