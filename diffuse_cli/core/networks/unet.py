"""The U-Net: the topology of ADM (Dhariwal & Nichol 2021), with the tensor names of diffusers.

Samples go down through levels of residual blocks, each level half the size of the one before,
through the middle, and up again; every block on the way up also reads what the matching block on
the way down wrote. The time enters each residual block, and self-attention joins the blocks of
the chosen resolutions. Module names are those of diffusers' `UNet2DModel`, so that weights go both
ways without a table of names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.errors import InvalidArgument, lookup
from diffuse_cli.core.networks import Run, plainly
from diffuse_cli.core.networks._blocks import BLOCKS, Attention, Parts, doubled, halved, zeroed
from diffuse_cli.core.networks._time import TIME_EMBEDDINGS, TimeEmbedding
from diffuse_cli.core.settings import Settings, setting
from diffuse_cli.core.space import Space

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
        block: a name in `BLOCKS`, for every residual block.
        resblock_updown: residual blocks change the size of feature maps, in place of convolutions
            (BigGAN up/down; section 3.1).
        scale_shift: the time scales and shifts the norm (adaptive group norm).
        groups: groups of every GroupNorm; each level's width is a multiple of it.
        time_embedding: a name in `TIME_EMBEDDINGS`.
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
    block: str = setting("resnet")
    resblock_updown: bool = setting(False)
    scale_shift: bool = setting(True)
    dropout: float = setting(0.0, 0, 0.9)
    groups: int = setting(32, 1, 1024)
    time_embedding: str = setting("sinusoidal")
    norm_eps: float = setting(1e-5, 1e-12, 1)
    downsample_padding: int = setting(1, 0, 1)
    freq_shift: int = setting(0, 0, 1)
    flip_sin_to_cos: bool = setting(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup(BLOCKS, self.block, "block")
        lookup(TIME_EMBEDDINGS, self.time_embedding, "time_embedding")
        if not self.multipliers:
            raise InvalidArgument("must have one level or more", argument="multipliers")
        if self.heads is not None and self.head_width is not None:
            raise InvalidArgument("heads and head_width exclude each other", "Give one of the two")
        for width in (self.width, *self.widths):
            self._check_width(width)
        self.heads_at(self.widths[-1])

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * multiple for multiple in self.multipliers]

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
        InvalidArgument: `check` refuses the space.
    """
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


class UNet(nn.Module):
    """The network that `build` makes.

    Attributes:
        run_block: how its blocks are run: `plainly`, or `checkpointed` to save memory.
    """

    def __init__(self, config: Config, space: Space, num_classes: int, out_channels: int) -> None:
        super().__init__()
        self.patch, self.num_classes = config.patch, num_classes
        self.run_block: Run = plainly
        parts = Parts(config, space.dims)
        width, time_width = config.width, 4 * config.width
        widths, attends = config.widths, config.attends(space.size)
        folded = config.patch**space.dims
        self.conv_in = parts.conv(space.channels * folded, width)
        self.time_proj = lookup(TIME_EMBEDDINGS, config.time_embedding, "time_embedding")(config)
        self.time_embedding = TimeEmbedding(self.time_proj.width, time_width)
        if num_classes:
            # As nn.Embedding draws it, which on the meta device imports a compiler for that.
            drawn = torch.randn(num_classes + 1, time_width)
            self.class_embedding = nn.Embedding.from_pretrained(drawn, freeze=False)

        self.down_blocks = nn.ModuleList()
        skips, before = [width], width
        for i, (after, attend) in enumerate(zip(widths, attends, strict=True)):
            last = i == len(widths) - 1
            inputs = [before] + [after] * (config.blocks - 1)
            self.down_blocks.append(Level(parts, inputs, after, attend, down=not last))
            skips += [after] * (config.blocks + (not last))
            before = after
        self.mid_block = Middle(parts, before)
        self.up_blocks = nn.ModuleList()
        for i, (after, attend) in enumerate(zip(widths[::-1], attends[::-1], strict=True)):
            last = i == len(widths) - 1
            inputs = [w + skips.pop() for w in [before] + [after] * config.blocks]
            self.up_blocks.append(Level(parts, inputs, after, attend, up=not last))
            before = after
        self.conv_norm_out = parts.norm(before)
        self.conv_out = zeroed(parts.conv(before, out_channels * folded))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction for `x` at the timesteps `t`.

        Args:
            x: (B, C, *size).
            t: (B,), real numbers on the scale 0 ... 1000.
            label: (B,) int64 for a conditional network; K, or None, is "no class".

        Returns:
            (B, out_channels, *size).
        """
        emb = self.time_embedding(self.time_proj(t))
        if self.num_classes:
            if label is None:
                label = torch.full_like(t, self.num_classes, dtype=torch.long)
            emb = emb + self.class_embedding(label)
        emb = F.silu(emb)
        h = self.conv_in(folded(x, self.patch))
        skips = [h]
        for level in self.down_blocks:
            h, states = level(h, emb, self.run_block)
            skips += states
        h = self.mid_block(h, emb, self.run_block)
        for level in self.up_blocks:
            h, _ = level(h, emb, self.run_block, skips)
        return unfolded(self.run_block(self._read_out, h), self.patch)

    def _read_out(self, h: Tensor) -> Tensor:
        return self.conv_out(self.conv_norm_out(h, silu=True))  # type: ignore[no-any-return]


def folded(x: Tensor, patch: int) -> Tensor:
    """(B, C, *size) to (B, C p^dims, *size / p): the positions of a patch are channels."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    cut = x.reshape(*x.shape[:2], *(n for side in x.shape[2:] for n in (side // patch, patch)))
    places = [2 + 2 * i for i in range(dims)]
    return cut.permute(0, 1, *(i + 1 for i in places), *places).flatten(1, 1 + dims)


def unfolded(x: Tensor, patch: int) -> Tensor:
    """The inverse of `folded`."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    cut = x.unflatten(1, (-1, *[patch] * dims))
    order = [n for i in range(dims) for n in (2 + dims + i, 2 + i)]
    return cut.permute(0, 1, *order).reshape(
        x.shape[0], -1, *(side * patch for side in x.shape[2:])
    )


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up, and the change of size after them."""

    def __init__(
        self,
        parts: Parts,
        inputs: list[int],
        width: int,
        attend: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(parts.residual(w, width) for w in inputs)
        if attend:
            self.attentions = nn.ModuleList(Attention(parts, width) for _ in inputs)
        if down:
            self.downsamplers = nn.ModuleList([parts.resized(width, halved)])
        if up:
            self.upsamplers = nn.ModuleList([parts.resized(width, doubled)])
        self.attend, self.down, self.up = attend, down, up

    def forward(
        self, h: Tensor, emb: Tensor, run: Run = plainly, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output, and every state on the way; `skips` are taken from their end."""
        states = []
        for i in range(len(self.resnets)):
            h = run(self._block, i, h, emb, skips.pop() if skips is not None else None)
            states.append(h)
        if self.down:
            h = run(self.downsamplers[0], h, emb)
            states.append(h)
        if self.up:
            h = run(self.upsamplers[0], h, emb)
        return h, states

    def _block(self, i: int, h: Tensor, emb: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        h = self.resnets[i](h, emb)
        return self.attentions[i](h) if self.attend else h


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, parts: Parts, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(parts.residual(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(parts, width)])

    def forward(self, h: Tensor, emb: Tensor, run: Run = plainly) -> Tensor:
        """Shape-preserving."""
        h = run(self.attentions[0], run(self.resnets[0], h, emb))
        return run(self.resnets[1], h, emb)
