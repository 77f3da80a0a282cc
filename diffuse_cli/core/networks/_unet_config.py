"""Shape of `unet`, and the sizes for which it works."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, setting
from diffuse_cli.core.space import Space

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
            text = "heads and head_width exclude each other"
            raise InvalidArgument(text, "Set only one", code="options_conflict")
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

    def check(self, space: Space) -> None:
        """Refuse a space that the levels cannot halve, or heads that do not divide a level.

        Raises:
            InvalidArgument: the configuration does not work. The hint suggests a size.
        """
        levels = len(self.multipliers)
        factor = self.patch * 2 ** (levels - 1)
        if any(side % factor for side in space.size):
            cut = "x".join([str(self.patch)] * space.dims)
            patches = f" on patches of {cut}" if self.patch > 1 else ""
            raise InvalidArgument(
                f"{space.size_text} does not suit a network of {levels} levels{patches}",
                f"Choose a multiple of {factor}, or fewer levels",
                argument="size",
            )
        for width, attends in zip(self.widths, self.attends(space.size), strict=True):
            if attends:
                self.heads_at(width)
                self.up_config.heads_at(width)
