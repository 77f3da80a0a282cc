"""A transformer over patches: JiT (Li & He 2025), which is DiT (Peebles & Xie 2023) on pixels.

Samples are cut into patches, each of which becomes a vector. Blocks of attention and MLPs mix the
vectors. The time and the conditions scale, shift and gate the blocks. Each vector then becomes a
patch again. There are no levels, so every block processes the whole sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Ends, largest_patch
from diffuse_cli.core.networks._vit_config import LARGEST, POSITIONS, positions
from diffuse_cli.core.networks._vit_config import Config as Config
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from torch import nn

ENDS = Ends(input="patch_in.weight", output="patch_out.weight", output_bias="patch_out.bias")

OF_SIZE = frozenset({"patch"})

COMPRESSION = 2
"""Largest ratio of values per patch to the width in presets, which predict x_0. With half the
number of values per patch, photos of 256 pixels keep 90 % of the power of their Laplacian. With an
eighth, photos of 512 pixels keep 38 %."""


def build(
    config: Config, space: Space, conditions: Conditions, out_channels: int | None = None
) -> nn.Module:
    """Build a transformer with random weights.

    Raises:
        InvalidArgument: `Config.check` refuses the space.
    """
    from diffuse_cli.core.networks._vit_modules import Transformer

    config.check(space)
    return Transformer(config, space, conditions, out_channels or space.channels)


def describe(config: Config, space: Space) -> list[str]:
    """Describe blocks, heads, patches, bottleneck and context."""
    cut = "x".join([str(config.patch)] * space.dims)
    patches = f"{positions(config.patch, space):,} patches of {cut}"
    if config.bottleneck is not None:
        patches += f" through {config.bottleneck} numbers"
    if config.context:
        patches += f", and {config.context} vectors of context from block {config.entry + 1} on"
    return [f"blocks: {config.depth} of {config.width} channels in {config.heads} heads", patches]


def full_rank(config: Config, space: Space) -> Config:
    """Return the configuration with patches, or else a width, that can hold noise in every
    dimension.

    Presets do not need it, because they predict x_0, which has fewer dimensions (Li & He 2025).
    """
    patch = largest_patch(config.patch, min(config.width, config.bottleneck or config.width), space)
    if patch is not None:
        return replace(config, patch=patch)
    width = config.width * -(-space.channels // config.width)
    bottleneck = config.bottleneck and max(config.bottleneck, space.channels)
    return replace(config, patch=1, width=width, bottleneck=bottleneck)


# -- from a preset to a configuration -------------------------------------------------------------


def adapt(
    fields: Mapping[str, Any],
    given: Mapping[str, Any],
    space: Space,
    *,
    published: bool = False,
    exact: bool = False,
) -> Config:
    """Adapt the configuration `fields` to a space.

    Patches are the smallest that give at most `positions` patches, with at most `COMPRESSION` times
    `width` values each. The bottleneck is removed if a patch does not have more values. Heads
    become narrower until they divide the width.

    Args:
        fields: the settings to adapt, and `positions`, the most patches of a sample. There can be
            more if patches would be too large. Without `positions`, `patch` is used unchanged.
        given: the settings to keep.
        published: whether the model is from a paper. It has no effect here.
        exact: whether to refuse a size that cannot be divided into at most `positions` patches.

    Raises:
        InvalidArgument: the settings do not work for the space.
    """
    fields = {**fields, **given}
    max_patches = fields.pop("positions", None)
    width, head_width = fields.get("width"), fields.get("head_width")
    if max_patches is not None and "patch" not in given:
        values = COMPRESSION * (width if isinstance(width, int) else Config.width)
        fields["patch"] = _patch(space, max_patches, values, exact)
    if "head_width" not in given and isinstance(width, int) and isinstance(head_width, int):
        even = (n for n in range(head_width - head_width % 2, 0, -2) if width % n == 0)
        fields["head_width"] = next(even, head_width)
    config = Config.from_dict(fields)
    numbers = config.patch**space.dims * space.channels
    if config.bottleneck is not None and "bottleneck" not in given and numbers <= config.bottleneck:
        config = Config.from_dict({**vars(config), "bottleneck": None})
    return config


def at_width(settings: Mapping[str, Any], width: int, published: bool) -> dict[str, Any]:
    """Return the settings that are valid at another width, without heads that do not divide it."""
    heads = settings.get("head_width")
    divides = isinstance(heads, int) and heads > 0 and width % heads == 0
    left_out = {"width"} if divides else {"width", "head_width"}
    return {name: value for name, value in settings.items() if name not in left_out}


def _patch(space: Space, max_patches: int, values: int, exact: bool) -> int:
    """Return the smallest side that divides the sample into at most `max_patches` patches.

    If there is none, it is the largest side that divides the sample. If patches would have more
    than `values` values, it is smaller.
    """
    sides = [n for n in range(1, LARGEST + 1) if not any(side % n for side in space.size)]
    allowed = [n for n in sides if positions(n, space) <= max_patches]
    if not allowed and exact:
        counts = {n: math.prod(-(-side // n) for side in space.size) for n in range(1, LARGEST)}
        divisors = (n for n, count in counts.items() if count <= max_patches)
        raise InvalidArgument(
            f"{space.size_text} cannot be cut into {max_patches} patches or fewer",
            f"Choose a multiple of {next(divisors, LARGEST)}",
            argument="size",
        )
    coarse = min(allowed, default=sides[-1])
    held = [n for n in sides if space.channels * n**space.dims <= values]
    held = [n for n in held if positions(n, space) <= POSITIONS]
    return min(coarse, max(held, default=coarse))
