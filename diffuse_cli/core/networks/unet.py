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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Ends
from diffuse_cli.core.networks._patches import largest_patch
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, dimensions, from_dict, setting
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from diffuse_cli.core.networks._unet_modules import UNet

ENDS = Ends(input="conv_in.weight", output="conv_out.weight", output_bias="conv_out.bias")

OF_SIZE = frozenset({"multipliers"})

WIDEST = 65_536
"""Most channels of a level."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Shape of a U-Net (the ADM topology; Dhariwal & Nichol 2021, section 3).

    Attributes:
        patch: the side of the patches that become one position of the feature maps (Luhman & Luhman
            2022), with patch^dims times the channels and 1 / patch of the size.
        width: the channels of the first level.
        multipliers: the width of each level, in multiples of the first.
        blocks: the number of residual blocks per level.
        attention: the resolutions with attention, by the shortest side of a level's feature map.
            Resolutions that no level has are ignored, so one list works for several sizes. The
            middle always has attention.
        heads, head_width: the number of attention heads, or the channels per head. Without both
            there is one head.
        heads_up: the number of heads on the way up, if it differs from `heads`.
        block: a name in `BLOCKS`.
        resblock_updown: whether residual blocks change the size of feature maps instead of
            convolutions (BigGAN up/down, section 3.1).
        scale_shift: whether the time scales and shifts the norm (adaptive group norm).
        groups: the number of groups of every GroupNorm, a divisor of each level's width.
        time_embedding: a name in `TIME_EMBEDDINGS`.
        time_width: a quarter of the width of the time embedding, by default `width`.
        norm_eps: the epsilon of GroupNorm, for imported models.
        downsample_padding: the padding of the convolutions that halve the size, or 0 to pad only
            the far ends, for imported models.
        freq_shift, flip_sin_to_cos: `shift` and `cos_first` of `sinusoids`, for imported models.

    Raises:
        InvalidArgument: settings that do not make a network.
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
            raise InvalidArgument("heads and head_width exclude each other", "Set only one")
        for width in (self.width, *self.widths):
            self._check_width(width)
        for config in (self, self.up_config):
            config.heads_at(self.widths[-1])

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return [self.width * multiple for multiple in self.multipliers]

    @property
    def up_config(self) -> Config:
        """The configuration of the way up."""
        return self if self.heads_up is None else replace(self, heads=self.heads_up, heads_up=None)

    @property
    def time_channels(self) -> int:
        """The number of channels of the time embedding."""
        return 4 * (self.time_width or self.width)

    def attends(self, size: tuple[int, ...]) -> list[bool]:
        """Whether each level has attention."""
        side = min(size) // self.patch
        return [side >> i in self.attention for i in range(len(self.multipliers))]

    def heads_at(self, width: int) -> int:
        """Return the number of attention heads of a level with `width` channels.

        Raises:
            InvalidArgument: the heads do not divide the width.
        """
        if self.head_width is not None:  # instead of `heads`
            if width % self.head_width:
                raise InvalidArgument(
                    f"a level of {width} channels cannot have heads of {self.head_width} channels"
                )
            return width // self.head_width
        heads = self.heads or 1
        if width % heads:
            text = f"a level of {width} channels cannot be cut into its attention heads"
            raise InvalidArgument(text)
        return heads

    def _check_width(self, width: int) -> None:
        if width > WIDEST:
            text = f"make a level of more than {WIDEST} channels"
            raise InvalidArgument(text, argument="multipliers")
        if width % self.groups:
            text = f"a level of {width} channels is not a multiple of {self.groups} groups"
            raise InvalidArgument(text, "Choose another width, or another number of groups")


def check(config: Config, space: Space) -> None:
    """Refuse a space that the levels cannot halve, or heads that do not divide a level.

    Raises:
        InvalidArgument: the configuration does not work. The hint suggests a size.
    """
    levels = len(config.multipliers)
    factor = config.patch * 2 ** (levels - 1)
    if any(side % factor for side in space.size):
        cut = "x".join([str(config.patch)] * space.dims)
        patches = f" patches of {cut}" if config.patch > 1 else ""
        raise InvalidArgument(
            f"a network of {levels} levels halves {levels - 1} times{patches}, which "
            f"{dimensions(space.size)} does not allow",
            f"Choose a size that is a multiple of {factor}, or fewer levels",
        )
    for width, attends in zip(config.widths, config.attends(space.size), strict=True):
        if attends:
            config.heads_at(width)
            config.up_config.heads_at(width)


def build(
    config: Config, space: Space, conditions: Conditions, out_channels: int | None = None
) -> UNet:
    """Build a U-Net with random weights.

    Raises:
        InvalidArgument: `check` refuses the space, or there is no such block or time embedding.
    """
    from diffuse_cli.core.networks._unet_modules import UNet

    check(config, space)
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

    Samples larger than `finest` are cut into patches, with at most `width` values each. If the
    samples have more channels than `width`, it is raised. Levels are added until the shortest side
    in patches is at most `LOWEST`, or odd. Groups and heads are lowered until they divide the
    widths.

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
        fields["patch"] = _patch(space, finest)
    undivided = {"heads": None, "head_width": None, "groups": 1}
    config = from_dict(Config, {**fields, **undivided})
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
    return from_dict(Config, {**vars(config), **heads, "groups": groups})


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


def _patch(space: Space, finest: int) -> int:
    """Return the largest power of two that divides all sides and leaves at least `finest`."""
    sizes = (2**n for n in range(5) if min(space.size) >= finest * 2**n)
    return max((p for p in sizes if not any(side % p for side in space.size)), default=1)


def _levels(config: Config, space: Space, exact: bool) -> tuple[int, ...]:
    """Return the multipliers for the number of levels of a size, repeating the last one."""
    sides = [side // config.patch for side in space.size]
    halvings = next(n for n in itertools.count() if min(sides) >> n <= LOWEST)
    allowed = next(n for n in range(halvings, -1, -1) if not any(s % 2**n for s in sides))
    if allowed < halvings and exact:
        raise InvalidArgument(
            f"{dimensions(space.size)} cannot be halved {halvings} times",
            f"Choose a multiple of {config.patch * 2**halvings}",
            argument="size",
        )
    levels = allowed + 1
    return (config.multipliers + config.multipliers[-1:] * levels)[:levels]


def _largest_divisor(number: int, maximum: int) -> int:
    return next(n for n in range(maximum, 0, -1) if number % n == 0)
