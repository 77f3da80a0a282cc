"""The U-Net: the topology of ADM (Dhariwal & Nichol 2021), with the tensor names of diffusers.

Samples go down through levels of residual blocks, each half the size of the previous level, through
the middle, and up again. Each block on the way up also reads the output of its counterpart on the
way down. The time enters every residual block, and some resolutions have self-attention. Modules
have the names of diffusers' `UNet2DModel`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Ends, largest_patch
from diffuse_cli.core.networks._unet_config import Config as Config
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from torch import nn

ENDS = Ends(input="conv_in.weight", output="conv_out.weight", output_bias="conv_out.bias")

OF_SIZE = frozenset({"multipliers"})


def build(
    config: Config, space: Space, conditions: Conditions, out_channels: int | None = None
) -> nn.Module:
    """Build a U-Net with random weights.

    Raises:
        InvalidArgument: `Config.check` refuses the space, or there is no such block or embedding.
    """
    from diffuse_cli.core.networks._unet_modules import UNet

    config.check(space)
    return UNet(config, space, conditions, out_channels or space.channels)


def describe(config: Config, space: Space) -> list[str]:
    """Describe levels, attention, blocks and patches."""
    levels = zip(config.widths, config.attends(space.size), strict=True)
    listed = ", ".join(f"{width}{' (attention)' if attends else ''}" for width, attends in levels)
    lines = [f"levels of {listed} channels; blocks per level: {config.blocks} ({config.block})"]
    if config.patch > 1:
        lines.append(f"patches of {'x'.join([str(config.patch)] * space.dims)}")
    return lines


def resized(config: Config, before: tuple[int, ...], after: tuple[int, ...]) -> Config:
    """Return a configuration for another size, with attention in the same levels."""
    attends, side = config.attends(before), min(after) // config.patch
    if config.attends(after) == attends:
        return config
    return replace(config, attention=tuple(side >> i for i, has in enumerate(attends) if has))


def widest(config: Config) -> int:
    """Return the channels of the widest level."""
    return max(config.widths)


def full_rank(config: Config, space: Space) -> Config:
    """Return the configuration with patches, or else a width, that can hold noise in every
    dimension."""
    patch = largest_patch(config.patch, config.width, space)
    if patch is not None:
        return replace(config, patch=patch)
    return replace(config, patch=1, width=config.width * -(-space.channels // config.width))


# -- from a preset to a configuration -------------------------------------------------------------

LOWEST = 8
"""Longest allowed shortest side at the last level. Levels are added until it is reached."""

GROUPS, CHANNELS_A_GROUP = 32, 16
"""Groups of published networks, and channels per group of other networks. 16 channels are best in
Wu & He 2018 (table 3), and fill a CPU's register in half precision. Both are lowered to divide the
width."""

LARGEST_PATCH = 16
"""Side of the largest patches of networks that name none."""

DIVISORS = frozenset({"groups", "heads", "head_width", "heads_up"})
"""Settings that must divide the width."""


def adapt(
    fields: Mapping[str, Any],
    given: Mapping[str, Any],
    space: Space,
    *,
    published: bool = False,
    exact: bool = False,
) -> Config:
    """Adapt the configuration `fields` to a space.

    Samples larger than `finest` are cut into patches of at most `width` values, with sides of at
    most `patch`. If the samples have more channels than `width`, it is raised. Levels are added
    until the shortest side in patches is at most `LOWEST`, or odd. Groups and heads are lowered
    until they divide the widths.

    Args:
        fields: the settings to adapt, and `finest`, the least number of patches along the shortest
            side. Without `finest` samples are not cut into patches.
        given: the settings to keep.
        published: whether the model is from a paper, so that its levels are kept.
        exact: whether to refuse a size that becomes odd before it is small enough.

    Raises:
        InvalidArgument: the settings do not work for the space.
    """
    fields = {**fields, **given}
    finest = fields.pop("finest", None)
    if finest is not None and "patch" not in given:
        fields["patch"] = _patch(space, finest, fields.get("patch", LARGEST_PATCH))
    undivided = {"heads": None, "head_width": None, "groups": 1}
    config = Config.from_dict({**fields, **undivided})
    held = full_rank(config, space)
    config = replace(
        config, **{name: getattr(held, name) for name in ("patch", "width") if name not in given}
    )
    if not published and "multipliers" not in given:
        config = replace(config, multipliers=_levels(config, space, exact))
    heads = {name: fields.get(name) for name in ("heads", "head_width")}
    if any(given.get(name) is not None for name in heads):
        heads = {name: given.get(name) for name in heads}
    attends = zip(config.widths, config.attends(space.size), strict=True)
    shared = math.gcd(*(width for width, attend in attends if attend), config.widths[-1])
    for name, maximum in heads.items():
        if maximum is not None and name not in given:
            heads[name] = _largest_divisor(shared, maximum)
    groups = given.get("groups", default_groups(config.width, published))
    return Config.from_dict({**vars(config), **heads, "groups": groups})


def default_groups(width: int, published: bool) -> int:
    """Return the default number of groups for a base width."""
    return _largest_divisor(width, GROUPS if published else max(1, width // CHANNELS_A_GROUP))


def at_width(settings: Mapping[str, Any], width: int, published: bool) -> dict[str, Any]:
    """Return the settings that are valid at another width.

    Settings that do not divide the width are left out, and so are groups if they are the default of
    the old width.
    """
    old_width = settings.get("width")
    # A width of a wrong type is refused when the network is built.
    followed = isinstance(old_width, int) and old_width > 0
    followed = followed and settings.get("groups") == default_groups(old_width, published)  # type: ignore[arg-type]
    return {
        name: value
        for name, value in settings.items()
        if name != "width"
        and not (name == "groups" and followed)
        and not (name in DIVISORS and isinstance(value, int) and value and width % value)
    }


def _patch(space: Space, finest: int, largest: int) -> int:
    """Return the largest power of two up to `largest` that divides all sides and leaves at least
    `finest`."""
    sizes = (2**n for n in range(largest.bit_length()) if min(space.size) >= finest * 2**n)
    return max((p for p in sizes if not any(side % p for side in space.size)), default=1)


def _levels(config: Config, space: Space, exact: bool) -> tuple[int, ...]:
    """Return the multipliers for the number of levels of a size, repeating the last one."""
    sides = [side // config.patch for side in space.size]
    halvings = next(n for n in itertools.count() if min(sides) >> n <= LOWEST)
    allowed = next(n for n in range(halvings, -1, -1) if not any(s % 2**n for s in sides))
    if allowed < halvings and exact:
        raise InvalidArgument(
            f"{space.size_text} cannot be halved {halvings} times",
            f"Choose a multiple of {config.patch * 2**halvings}",
            argument="size",
        )
    levels = allowed + 1
    return (config.multipliers + config.multipliers[-1:] * levels)[:levels]


def _largest_divisor(number: int, maximum: int) -> int:
    return next(n for n in range(maximum, 0, -1) if number % n == 0)
