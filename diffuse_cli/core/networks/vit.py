"""A transformer over patches: JiT (Li & He 2025), which is DiT (Peebles & Xie 2023) on pixels.

Samples are cut into patches, each of which becomes a vector; blocks of attention and MLPs, which
the time and the conditions scale, shift and gate, mix them; each vector becomes a patch again.
There are no levels: every block sees the whole sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Ends
from diffuse_cli.core.networks._patches import fitting
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, dimensions, from_dict, setting
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from diffuse_cli.core.networks._vit_modules import Transformer

ENDS = Ends(
    input="patch_in.weight",
    output="patch_out.weight",
    output_bias="patch_out.bias",
    classes="class_embedding.weight",
    class_bias="time_embedding.linear_2.bias",
    columns="row_embedding",
)

OF_SIZE = frozenset({"patch"})

LARGEST = 64
"""The longest side of a patch."""

POSITIONS = 2**14
"""The most patches of a sample: attention compares each with all."""

COMPRESSION = 2
"""The most values of a patch for each of the width in presets, which predict x_0. Photos of 256
pixels keep 90 % of the power of their Laplacian through half as many numbers as a patch has, and
photos of 512 pixels 38 % through an eighth."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """The shape of a transformer over patches.

    Attributes:
        patch: side of the patches. Their sides divide the sample's.
        width: numbers of the vector of each patch.
        depth: blocks.
        head_width: numbers of each attention head; they divide the width, and are even.
        mlp: hidden numbers of an MLP over the width, before a third is taken off for its gate,
            which leaves it the weights of one without (Shazeer 2020, section 2).
        bottleneck: numbers through which a patch passes on its way in (Li & He
            2025); none for a single linear layer.
        context: further vectors of what the network is told, which join the patches after a third
            of the blocks (Li & He 2025).
        dropout: of the results of attention, and of the hidden numbers of MLPs.

    Raises:
        InvalidArgument: settings that are no network.
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
            raise InvalidArgument(
                f"a width of {self.width} cannot be cut into heads of {self.head_width}",
                "Choose a multiple of it",
            )

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.width // self.head_width

    @property
    def hidden(self) -> int:
        """Hidden numbers of an MLP."""
        return max(1, int(self.width * self.mlp * 2 / 3))

    @property
    def entry(self) -> int:
        """The block before which the context joins the patches: a third of them in JiT."""
        return self.depth // 3


def check(config: Config, space: Space) -> None:
    """Refuse a space that the patches do not divide, or too many of them.

    Raises:
        InvalidArgument
    """
    if any(side % config.patch for side in space.size):
        raise InvalidArgument(
            f"patches of {config.patch} do not divide {dimensions(space.size)}",
            f"Choose a size that is a multiple of {config.patch}, or other patches",
        )
    if (count := positions(config.patch, space)) > POSITIONS:
        raise InvalidArgument(
            f"attention over {count:,} patches of {dimensions(space.size)} is too much",
            f"Choose a larger patch than {config.patch}, or a smaller size",
        )
    if config.head_width < 2 * space.dims:
        raise InvalidArgument(
            f"must be {2 * space.dims} or more in {space.dims} dimensions, not {config.head_width}",
            argument="head_width",
        )


def positions(patch: int, space: Space) -> int:
    """How many patches of this side a sample has."""
    return math.prod(side // patch for side in space.size)


def build(
    config: Config, space: Space, conditions: Conditions, out_channels: int | None = None
) -> Transformer:
    """A transformer with random weights.

    Raises:
        InvalidArgument: `check` refuses the space.
    """
    from diffuse_cli.core.networks._vit_modules import Transformer

    check(config, space)
    return Transformer(config, space, conditions, out_channels or space.channels)


def describe(config: Config, space: Space) -> list[str]:
    """Blocks, heads, patches, bottleneck and context."""
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

    The presets predict x_0, which takes fewer numbers (Li & He 2025).
    """
    patch = fitting(config.patch, min(config.width, config.bottleneck or config.width), space)
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
    """The configuration `fields`, adapted to a space.

    Patches are as small as leave few enough of them, and have at most `COMPRESSION` values for each
    of the width. A bottleneck is left out where a patch has no more numbers than it. Heads become
    narrower until they divide the width.

    Args:
        fields: settings to adapt, and `positions`: the most patches of a sample, where some divide
            it so and are not too large. Without it the patch is taken as it is.
        given: settings to keep.
        published: nothing is fixed to a size here.
        exact: refuse a size that no patches divide into few enough.

    Raises:
        InvalidArgument: the settings do not suit the space.
    """
    fields = {**fields, **given}
    most = fields.pop("positions", None)
    width, head_width = fields.get("width"), fields.get("head_width")
    if most is not None and "patch" not in given:
        values = COMPRESSION * (width if isinstance(width, int) else Config.width)
        fields["patch"] = _patch(space, most, values, exact)
    if "head_width" not in given and isinstance(width, int) and isinstance(head_width, int):
        even = (n for n in range(head_width - head_width % 2, 0, -2) if width % n == 0)
        fields["head_width"] = next(even, head_width)
    config = from_dict(Config, fields)
    numbers = config.patch**space.dims * space.channels
    if config.bottleneck is not None and "bottleneck" not in given and numbers <= config.bottleneck:
        config = from_dict(Config, {**vars(config), "bottleneck": None})
    return config


def at_width(settings: Mapping[str, Any], width: int, published: bool) -> dict[str, Any]:
    """Those of a table of settings that suit another width: not heads that do not divide it."""
    heads = settings.get("head_width")
    divides = isinstance(heads, int) and heads > 0 and width % heads == 0
    left_out = {"width"} if divides else {"width", "head_width"}
    return {name: value for name, value in settings.items() if name not in left_out}


def _patch(space: Space, most: int, values: int, exact: bool) -> int:
    """Return the smallest side that divides the sample into at most `most` patches, or else the
    largest that divides it; smaller, with more patches, where those have more than `values`."""
    sides = [n for n in range(1, LARGEST + 1) if not any(side % n for side in space.size)]
    few = [n for n in sides if positions(n, space) <= most]
    if not few and exact:
        counts = {n: math.prod(-(-side // n) for side in space.size) for n in range(1, LARGEST)}
        wanted = (n for n, count in counts.items() if count <= most)
        raise InvalidArgument(
            f"{dimensions(space.size)} cannot be cut into {most} patches or fewer",
            f"Choose a multiple of {next(wanted, LARGEST)}",
            argument="size",
        )
    coarse = min(few, default=sides[-1])
    held = [n for n in sides if space.channels * n**space.dims <= values]
    held = [n for n in held if positions(n, space) <= POSITIONS]
    return min(coarse, max(held, default=coarse))
