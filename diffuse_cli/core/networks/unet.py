"""The U-Net: the topology of ADM (Dhariwal & Nichol 2021), with the tensor names of diffusers.

Samples go down through levels of residual blocks, each level half the size of the one before,
through the middle, and up again; every block on the way up also reads what the matching block on
the way down wrote. The time enters each residual block, and self-attention joins the blocks of
the chosen resolutions. Module names are those of diffusers' `UNet2DModel`, so that weights go both
ways without a table of names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.settings import Settings, from_dict, setting
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from diffuse_cli.core.networks._unet import UNet

WIDEST = 65_536
"""Channels of the widest level that can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """The shape of a U-Net (the ADM topology; Dhariwal & Nichol 2021, section 3).

    Attributes:
        patch: positions a side that are one of the feature maps (Luhman & Luhman 2022). The
            network sees patch^dims times the channels at 1 / patch of the size; its levels halve
            that.
        width: channels of the first level; the time embedding is four times as wide.
        multipliers: width of each level, in multiples of the first.
        blocks: residual blocks a level.
        attention: resolutions (the shortest side of a level's feature map) with attention; one that
            no level has is passed over, so that a list serves several sizes. The middle always has
            attention.
        heads, head_width: one of the two; `head_width` channels a head where `heads` is None, and
            one head where neither is given.
        heads_up: heads on the way up, where they are others than `heads`.
        block: a name in `BLOCKS`, for every residual block.
        resblock_updown: residual blocks change the size of feature maps, in place of convolutions
            (BigGAN up/down; section 3.1).
        scale_shift: the time scales and shifts the norm (adaptive group norm).
        groups: groups of every GroupNorm; each level's width is a multiple of it.
        time_embedding: a name in `TIME_EMBEDDINGS`.
        time_width: what the time embedding is four times as wide as, where that is not `width`.
        norm_eps, downsample_padding, freq_shift, flip_sin_to_cos: as the code that a model comes
            from has them, under diffusers' names: what is added to the variance that GroupNorm
            divides by; padding of the convolutions that halve, 0 for the far ends alone; `shift`
            and `cos_first` of `sinusoids`. The third says nothing of Fourier features, the second
            nothing of residual blocks that halve.

    Raises:
        InvalidArgument: settings of which no network can be built.
    """

    patch: int = setting(1, 1, 16)
    width: int = setting(64, 2, 4096)
    multipliers: tuple[int, ...] = setting((1, 2, 2), 1)
    blocks: int = setting(2, 1, 16)
    attention: tuple[int, ...] = setting((8,), 1)
    heads: int | None = setting(None, 1, 256)
    head_width: int | None = setting(None, 1, 4096)
    heads_up: int | None = setting(None, 1, 256)
    block: str = setting("resnet")
    resblock_updown: bool = setting(False)
    scale_shift: bool = setting(True)
    dropout: float = setting(0.0, 0, 0.9)
    groups: int = setting(32, 1, 1024)
    time_embedding: str = setting("sinusoidal")
    time_width: int | None = setting(None, 2, 4096)
    norm_eps: float = setting(1e-5, 1e-12, 1)
    downsample_padding: int = setting(1, 0, 1)
    freq_shift: int = setting(0, 0, 1)
    flip_sin_to_cos: bool = setting(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.multipliers:
            raise InvalidArgument("must have one level or more", argument="multipliers")
        if self.heads is not None and self.head_width is not None:
            raise InvalidArgument("heads and head_width exclude each other", "Give one of the two")
        for width in (self.width, *self.widths):
            self._check_width(width)
        self.heads_at(self.widths[-1])
        self.upward  # noqa: B018  its heads are checked as it is made

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * multiple for multiple in self.multipliers]

    @property
    def upward(self) -> Config:
        """The network with the heads of its way up throughout."""
        return self if self.heads_up is None else replace(self, heads=self.heads_up, heads_up=None)

    @property
    def time_channels(self) -> int:
        """Channels of the time embedding."""
        return 4 * (self.time_width or self.width)

    def attends(self, size: tuple[int, ...]) -> list[bool]:
        """Whether the blocks of each level have attention; those of the middle always have."""
        side = min(size) // self.patch
        return [side >> i in self.attention for i in range(len(self.multipliers))]

    def heads_at(self, width: int) -> int:
        """Attention heads of a level of `width` channels.

        Raises:
            InvalidArgument: they do not divide it.
        """
        heads = self.heads if self.heads is not None else 1
        if self.heads is None and self.head_width is not None:
            if width % self.head_width:
                raise InvalidArgument(
                    f"a level of {width} channels has no heads of {self.head_width}"
                )
            heads = width // self.head_width
        if width % heads:
            raise InvalidArgument(
                f"a level of {width} channels cannot be cut into its attention heads"
            )
        return heads

    def _check_width(self, width: int) -> None:
        if width > WIDEST:
            raise InvalidArgument(
                f"make a level of more than {WIDEST} channels", argument="multipliers"
            )
        if width % self.groups:
            raise InvalidArgument(
                f"a level of {width} channels is not a multiple of {self.groups} groups",
                "Choose a width that is, or another number of groups",
            )


def check(config: Config, space: Space) -> None:
    """Refuse a space that the levels cannot halve, or heads that do not divide a level.

    Raises:
        InvalidArgument: as said.
    """
    levels = len(config.multipliers)
    factor = config.patch * 2 ** (levels - 1)
    if any(side % factor for side in space.size):
        cut = "x".join([str(config.patch)] * space.dims)
        patches = f" patches of {cut}" if config.patch > 1 else ""
        raise InvalidArgument(
            f"a network of {levels} levels halves {levels - 1} times{patches}, which "
            f"{'x'.join(map(str, space.size))} does not allow",
            f"Choose a size that is a multiple of {factor}, or fewer levels",
        )
    for width, attends in zip(config.widths, config.attends(space.size), strict=True):
        if attends:
            config.heads_at(width)


def build(
    config: Config, space: Space, conditions: Conditions, out_channels: int | None = None
) -> UNet:
    """A U-Net for the samples of a space, with random weights.

    Raises:
        InvalidArgument: `check` refuses the space, or no such block or time embedding.
    """
    from diffuse_cli.core.networks._unet import UNet

    check(config, space)
    return UNet(config, space, conditions.num_classes, out_channels or space.channels)


def describe(config: Config, space: Space) -> list[str]:
    """The levels, and where attention is."""
    levels = zip(config.widths, config.attends(space.size), strict=True)
    shown = ", ".join(f"{width}{' (attention)' if attends else ''}" for width, attends in levels)
    lines = [f"levels of {shown} channels; blocks a level: {config.blocks} ({config.block})"]
    if config.patch > 1:
        lines.append(f"patches of {'x'.join([str(config.patch)] * space.dims)}")
    return lines


# -- from a preset to a configuration -------------------------------------------------------------

LOWEST = 8
"""Levels are added until the shortest side is at most this many positions."""

GROUPS, CHANNELS_A_GROUP = 32, 16
"""Groups of a published network, and channels of a group of ours: the best of Wu & He 2018 (table
3), and as many as fill a register of a processor in half precision. Both give way to a width that
they do not divide."""


def adapt(
    fields: Mapping[str, Any],
    given: Mapping[str, Any],
    space: Space,
    *,
    published: bool = False,
    exact: bool = False,
) -> Config:
    """The configuration of `fields` that suits a space.

    Levels are added until the shortest side, in patches, is at most 8, or is odd. Groups, and heads
    at most the number or width of `fields`, are made to divide the widths.

    Args:
        fields: settings, some of which may not suit the space.
        given: those that stay as they are.
        published: a model of a paper, whose levels stay too.
        exact: refuse a size that is odd too soon.

    Raises:
        InvalidArgument: no network of these settings suits the space.
    """
    fields = {**fields, **given}
    undivided = {"heads": None, "head_width": None, "groups": 1}
    config = from_dict(Config, {**fields, **undivided})
    if not published and "multipliers" not in given:
        config = replace(config, multipliers=_levels(config, space, exact))
    heads = {name: fields.get(name) for name in ("heads", "head_width")}
    if any(given.get(name) is not None for name in heads):
        heads = {name: given.get(name) for name in heads}
    attends = zip(config.widths, config.attends(space.size), strict=True)
    shared = math.gcd(*(width for width, attend in attends if attend), config.widths[-1])
    for name, most in heads.items():
        if most is not None and name not in given:
            heads[name] = _largest_divisor(shared, most)
    groups = given.get("groups", groups_at(config.width, published))
    return from_dict(Config, {**vars(config), **heads, "groups": groups})


def groups_at(width: int, published: bool) -> int:
    """The groups of the normalisation where none are given, at this base width."""
    return _largest_divisor(width, GROUPS if published else max(1, width // CHANNELS_A_GROUP))


def _levels(config: Config, space: Space, exact: bool) -> tuple[int, ...]:
    """The multipliers of as many levels as suit the size, the last one repeated where needed."""
    sides = [side // config.patch for side in space.size]
    wanted = next(n for n in range(16) if min(sides) >> n <= LOWEST)
    allowed = next(n for n in range(wanted, -1, -1) if not any(s % 2**n for s in sides))
    if allowed < wanted and exact:
        raise InvalidArgument(
            f"{'x'.join(map(str, space.size))} cannot be halved {wanted} times",
            f"Choose a multiple of {config.patch * 2**wanted}",
            argument="size",
        )
    levels = allowed + 1
    return (config.multipliers + config.multipliers[-1:] * levels)[:levels]


def _largest_divisor(number: int, most: int) -> int:
    return next(n for n in range(most, 0, -1) if number % n == 0)
