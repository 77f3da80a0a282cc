"""A transformer over patches: JiT (Li & He 2025), which is DiT (Peebles & Xie 2023) on pixels.

Samples are cut into patches, each of which becomes a vector. Blocks of attention and MLPs mix the
vectors. The time and the conditions scale, shift and gate the blocks. Each vector then becomes a
patch again. There are no levels, so every block processes the whole sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Ends
from diffuse_cli.core.networks._patches import largest_patch
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, dimensions, from_dict, setting
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from diffuse_cli.core.networks._vit_modules import Transformer

ENDS = Ends(input="patch_in.weight", output="patch_out.weight", output_bias="patch_out.bias")

OF_SIZE = frozenset({"patch"})

LARGEST = 64
"""Longest side of a patch."""

POSITIONS = 2**14
"""Most patches of a sample. The cost of attention grows with their square."""

COMPRESSION = 2
"""Largest ratio of values per patch to the width in presets, which predict x_0. With half the
number of values per patch, photos of 256 pixels keep 90 % of the power of their Laplacian. With an
eighth, photos of 512 pixels keep 38 %."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Shape of a transformer over patches.

    Attributes:
        patch: the side of the patches, a divisor of the sample's sides.
        width: the length of the vector of each patch.
        depth: the number of blocks.
        head_width: the channels per attention head, an even divisor of the width.
        mlp: the ratio of the hidden width of an MLP to the width. A third is then removed because
            of the gate, so that the number of weights stays the same (Shazeer 2020, section 2).
        bottleneck: the width of a first linear layer for patches (Li & He 2025), or None to use a
            single linear layer.
        context: the number of further vectors for the conditions, which join the patches after a
            third of the blocks (Li & He 2025).
        dropout: the dropout of the results of attention and of the hidden features of MLPs.

    Raises:
        InvalidArgument: settings that do not make a network.
    """

    patch: int = setting(4, 1, LARGEST)
    width: int = setting(384, 2, 4096)
    depth: int = setting(12, 1, 128)
    head_width: int = setting(64, 2, 4096)
    mlp: float = setting(4.0, 0.5, 16)
    bottleneck: int | None = setting(None, 1, 4096)
    context: int = setting(0, 0, 1024)
    dropout: float = setting(0.0, 0, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_width % 2:
            raise InvalidArgument(f"must be even, not {self.head_width}", argument="head_width")
        if self.width % self.head_width:
            text = f"a width of {self.width} cannot be cut into heads of {self.head_width}"
            raise InvalidArgument(text, f"Choose a multiple of {self.head_width}")

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.width // self.head_width

    @property
    def hidden_width(self) -> int:
        """The hidden width of an MLP."""
        return max(1, int(self.width * self.mlp * 2 / 3))

    @property
    def entry(self) -> int:
        """The block before which the context joins: a third of the depth, as in JiT."""
        return self.depth // 3


def check(config: Config, space: Space) -> None:
    """Refuse a space that the patches do not divide, or too many patches.

    Raises:
        InvalidArgument: the configuration does not work.
    """
    if any(side % config.patch for side in space.size):
        raise InvalidArgument(
            f"patches of {config.patch} do not divide {dimensions(space.size)}",
            f"Choose a size that is a multiple of {config.patch}, or other patches",
        )
    if (count := positions(config.patch, space)) > POSITIONS:
        text = f"{dimensions(space.size)} has too many patches for attention: {count:,}"
        raise InvalidArgument(text, f"Choose a larger patch than {config.patch}, or a smaller size")
    if config.head_width < 2 * space.dims:
        raise InvalidArgument(
            f"must be {2 * space.dims} or more in {space.dims} dimensions, not {config.head_width}",
            argument="head_width",
        )


def positions(patch: int, space: Space) -> int:
    """Return the number of patches of a sample."""
    return math.prod(side // patch for side in space.size)


def build(
    config: Config, space: Space, conditions: Conditions, out_channels: int | None = None
) -> Transformer:
    """Build a transformer with random weights.

    Raises:
        InvalidArgument: `check` refuses the space.
    """
    from diffuse_cli.core.networks._vit_modules import Transformer

    check(config, space)
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
    config = from_dict(Config, fields)
    numbers = config.patch**space.dims * space.channels
    if config.bottleneck is not None and "bottleneck" not in given and numbers <= config.bottleneck:
        config = from_dict(Config, {**vars(config), "bottleneck": None})
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
            f"{dimensions(space.size)} cannot be cut into {max_patches} patches or fewer",
            f"Choose a multiple of {next(divisors, LARGEST)}",
            argument="size",
        )
    coarse = min(allowed, default=sides[-1])
    held = [n for n in sides if space.channels * n**space.dims <= values]
    held = [n for n in held if positions(n, space) <= POSITIONS]
    return min(coarse, max(held, default=coarse))
