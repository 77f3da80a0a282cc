"""The U-Net: the topology of ADM (Dhariwal & Nichol 2021), with the tensor names of diffusers.

Images go down through levels of residual blocks, each level half the size of the one before,
through the middle, and up again; every block on the way up also reads what the matching block on
the way down wrote. The time enters each residual block, and self-attention joins the blocks of
the chosen resolutions. Module names are those of diffusers' `UNet2DModel`, so that weights go both
ways without a table of names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.config import UNetConfig
from diffuse_cli.core.norms import GroupNorm

NORM_EPS = 1e-5


class UNet(nn.Module):
    """A network for images of shape (B, channels, H, W) and timesteps of shape (B,).

    Args:
        config: its shape.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, time_width = config.width, 4 * config.width
        widths = [width * m for m in config.multipliers]
        attends = [min(config.size) >> i in config.attention for i in range(len(widths))]
        self.conv_in = _conv(config.channels, width)
        self.time_embedding = TimeEmbedding(width, time_width)
        if config.num_classes:
            self.class_embedding = nn.Embedding(config.num_classes + 1, time_width)

        self.down_blocks = nn.ModuleList()
        skips, before = [width], width
        for i, (after, attend) in enumerate(zip(widths, attends, strict=True)):
            last = i == len(widths) - 1
            inputs = [before] + [after] * (config.blocks - 1)
            self.down_blocks.append(Level(config, inputs, after, attend, down=not last))
            skips += [after] * (config.blocks + (not last))
            before = after
        self.mid_block = Middle(config, before)
        self.up_blocks = nn.ModuleList()
        for i, (after, attend) in enumerate(zip(widths[::-1], attends[::-1], strict=True)):
            last = i == len(widths) - 1
            inputs = [w + skips.pop() for w in [before] + [after] * config.blocks]
            self.up_blocks.append(Level(config, inputs, after, attend, up=not last))
            before = after
        self.conv_norm_out = _norm(config, before)
        self.conv_out = zeroed(_conv(before, config.out_channels or config.channels))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction for `x` at the timesteps `t`.

        Args:
            x: (B, channels, H, W).
            t: (B,), real numbers on the scale 0 ... 1000.
            label: (B,) int64 for a conditional network; K, or None, is "no class".

        Returns:
            (B, out_channels, H, W).
        """
        emb = self.time_embedding(sinusoids(t, self.config.width))
        if self.config.num_classes:
            if label is None:
                label = torch.full_like(t, self.config.num_classes, dtype=torch.long)
            emb = emb + self.class_embedding(label)
        emb = F.silu(emb)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            h, states = level(h, emb)
            skips += states
        h = self.mid_block(h, emb)
        for level in self.up_blocks:
            h, _ = level(h, emb, skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))  # type: ignore[no-any-return]


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of the timestep."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, time_width)."""
        return self.linear_2(F.silu(self.linear_1(x)))  # type: ignore[no-any-return]


def sinusoids(t: Tensor, width: int) -> Tensor:
    """cos and sin of t at geometric frequencies from 1 to 1e-4 (Vaswani et al. 2017, 3.5).

    Args:
        t: (B,), real numbers.
        width: size of the result's second dimension.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * index / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width - 2 * half))


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up, and the change of size after them."""

    def __init__(
        self,
        config: UNetConfig,
        inputs: list[int],
        width: int,
        attend: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(config, w, width) for w in inputs)
        if attend:
            self.attentions = nn.ModuleList(Attention(config, width) for _ in inputs)
        if down:
            self.downsamplers = nn.ModuleList([Downsample(width)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(width)])
        self.attend, self.down, self.up = attend, down, up

    def forward(
        self, h: Tensor, emb: Tensor, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output, and every state on the way; `skips` are taken from their end."""
        states = []
        for i, resnet in enumerate(self.resnets):
            if skips is not None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = resnet(h, emb)
            if self.attend:
                h = self.attentions[i](h)
            states.append(h)
        if self.down:
            h = self.downsamplers[0](h)
            states.append(h)
        if self.up:
            h = self.upsamplers[0](h)
        return h, states


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(config, width)])

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Shape-preserving."""
        h = self.attentions[0](self.resnets[0](h, emb))
        return self.resnets[1](h, emb)  # type: ignore[no-any-return]


class ResBlock(nn.Module):
    """norm, SiLU, conv; time; norm, SiLU, dropout, conv; and the input added.

    The time is added to the features, or scales and shifts the second norm (adaptive group norm;
    Dhariwal & Nichol 2021, section 3.1).
    """

    def __init__(self, config: UNetConfig, before: int, after: int) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1 = _norm(config, before)
        self.conv1 = _conv(before, after)
        self.time_emb_proj = nn.Linear(4 * config.width, after * (2 if self.scale_shift else 1))
        self.norm2 = _norm(config, after)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zeroed(_conv(after, after))
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W); `emb` is (B, 4 * width), activated."""
        h = self.conv1(F.silu(self.norm1(x)))
        time = self.time_emb_proj(emb)
        if self.scale_shift:
            h = self.norm2(h, *time.chunk(2, dim=1))
        else:
            h = self.norm2(h + time[:, :, None, None])
        h = self.conv2(self.dropout(F.silu(h)))
        return self.conv_shortcut(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over the pixels, and the input added (Ho et al. 2020, appendix B)."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.heads = config.heads_at(width)
        self.group_norm = _norm(config, width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([zeroed(nn.Linear(width, width))])

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving."""
        height, length = x.shape[2:]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.to_out[0](mixed).transpose(1, 2)
        added: Tensor = x + mixed.reshape(*mixed.shape[:2], height, length)
        return added


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _norm(config: UNetConfig, width: int) -> GroupNorm:
    return GroupNorm(config.groups, width, eps=NORM_EPS)


def zeroed(module: Any) -> Any:
    """Set a layer to zero, so that its block begins as the identity (Ho et al. 2020)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def count_parameters(module: nn.Module) -> int:
    """The number of trained numbers of a network."""
    return sum(p.numel() for p in module.parameters())
