"""Modules of `vit`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core import kernels
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Run, layers, run_directly
from diffuse_cli.core.networks._vit_config import Config
from diffuse_cli.core.space import Space

TIME_FEATURES = 256
"""Number of cosines and sines of t, as in the code of Peebles & Xie 2023."""

THETA = 10_000.0
"""Ratio of rotary frequencies, which go from 1 to almost 1 / `THETA` radian per patch (Su et al.
2024)."""

SIDE = 16.0
"""Length of every side for `embed_positions`, independent of its number of patches. It is the
number of patches per side at 256 pixels in Li & He 2025."""

EPS = 1e-6


class Transformer(layers.ConditionedNetwork):
    """Transformer over patches.

    Attributes:
        run_block: the function that runs blocks: `run_directly`, or `run_checkpointed` to save
            memory.
        ends: the modules between features and patches, times, classes or metadata.
    """

    ends = (
        "patch_in", "widen", "patch_out", "time_embedding", "class_embedding", "row_embedding",
        "modulation", "context", "augment_embedding",
    )  # fmt: skip

    def __init__(
        self, config: Config, space: Space, conditions: Conditions, out_channels: int
    ) -> None:
        super().__init__(conditions)
        self.patch, self.entry, self.pairs = config.patch, config.entry, config.head_width // 2
        self.run_block: Run = run_directly
        width, places = config.width, config.patch**space.dims
        numbers = (space.channels + self.given_channels) * places
        if config.bottleneck is None:
            self.patch_in, self.widen = layers.init_xavier(nn.Linear(numbers, width)), nn.Identity()
        else:
            self.patch_in = layers.init_xavier(nn.Linear(numbers, config.bottleneck, bias=False))
            self.widen = layers.init_xavier(nn.Linear(config.bottleneck, width))
        self._embed(conditions, TIME_FEATURES, width)
        if config.context:
            self.context = nn.Parameter(0.02 * torch.randn(config.context, width))
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.norm_out = RMSNorm(width, weighted=False)
        self.modulation = layers.init_zeros(nn.Linear(width, 2 * width))
        self.patch_out = layers.init_zeros(nn.Linear(width, out_channels * places))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        given: Tensor | None = None,
        row: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Map inputs as `UNet` does, at every size that the patches divide."""
        condition = self.embed_conditions(layers.sinusoids(t, TIME_FEATURES), label, row, augment)
        emb = F.silu(condition)
        cut = layers.fold_patches(self.concat_given(x, given), self.patch)
        grid = cut.shape[2:]
        h = self.widen(self.patch_in(cut.flatten(2).transpose(1, 2)))
        h = h + embed_positions(grid, h.shape[2], x.device)
        cos, sin = rotary_angles(grid, self.pairs, x.device)
        context = getattr(self, "context", None)
        for i, block in enumerate(self.blocks):
            if context is not None and i == self.entry:
                h = torch.cat([condition[:, None] + context, h], dim=1)
                cos = F.pad(cos, (0, 0, len(context), 0), value=1.0)
                sin = F.pad(sin, (0, 0, len(context), 0))
            h = self.run_block(block, h, emb, cos, sin)
        y = self.run_block(self._read_out, h[:, h.shape[1] - grid.numel() :], emb)
        return layers.unfold_patches(y.transpose(1, 2).unflatten(2, grid), self.patch).contiguous()

    def _read_out(self, h: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=2)
        return self.patch_out(modulate(self.norm_out(h), shift, scale))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and an MLP, each with a shift, a scale and a gate.

    They depend on the time and the conditions and start at zero, so that a block starts as the
    identity (adaLN-zero: Peebles & Xie 2023, section 3.2).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.modulation = layers.init_zeros(nn.Linear(config.width, 6 * config.width))
        self.norm1 = RMSNorm(config.width, weighted=False)
        self.attention = RotaryAttention(config)
        self.norm2 = RMSNorm(config.width, weighted=False)
        self.mlp = SwiGLU(config)

    def forward(self, h: Tensor, emb: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Transform (B, N, width), with `emb` (B, width) and cosines and sines (N, pairs)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=2)
        h = h + gate1 * self.attention(modulate(self.norm1(h), shift1, scale1), cos, sin)
        return h + gate2 * self.mlp(modulate(self.norm2(h), shift2, scale2))  # type: ignore[no-any-return]


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return h (1 + scale) + shift, for h (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, h, 1 + scale)


class RotaryAttention(nn.Module):
    """Self-attention with normalized queries and keys, which positions rotate (Su et al. 2024).

    For the norm see Henry et al. 2020 and Dehghani et al. 2023, section 2.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.to_q, self.to_k, self.to_v, self.to_out = (
            layers.init_xavier(nn.Linear(config.width, config.width)) for _ in range(4)
        )
        self.norm_q, self.norm_k = RMSNorm(config.head_width), RMSNorm(config.head_width)
        self.dropout = kernels.Dropout(config.dropout)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix the positions of (B, N, width)."""
        q, k, v = (self._heads(part(h)) for part in (self.to_q, self.to_k, self.to_v))
        q, k = (rotate_pairs(x, cos, sin).to(v.dtype) for x in (self.norm_q(q), self.norm_k(k)))
        return self.dropout(self.to_out(kernels.attend(q, k, v).transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        """Split (B, N, width) into heads, (B, heads, N, head_width)."""
        return x.reshape(*x.shape[:2], -1, self.head_width).transpose(1, 2)


class SwiGLU(nn.Module):
    """W_3 (SiLU(W_1 h) * W_2 h) (Shazeer 2020, eq. 6), with biases."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate, self.value = (
            layers.init_xavier(nn.Linear(config.width, config.hidden_width)) for _ in range(2)
        )
        self.dropout = kernels.Dropout(config.dropout)
        self.out = layers.init_xavier(nn.Linear(config.hidden_width, config.width))

    def forward(self, h: Tensor) -> Tensor:
        """Transform each position without changing shapes."""
        return self.out(self.dropout(F.silu(self.gate(h)) * self.value(h)))  # type: ignore[no-any-return]


class RMSNorm(nn.Module):
    """x over the root of its mean square (Zhang & Sennrich 2019), optionally times weights.

    It computes in float32 or better for every precision of x.
    """

    def __init__(self, width: int, *, weighted: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(x, x.shape[-1:], self.weight, EPS)


# -- positions -------------------------------------------------------------------------------------


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of x (..., N, 2 pairs) by the angles of each position.

    A product of rotated queries and keys depends only on the difference of their positions (Su et
    al. 2024, eq. 16).
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_angles(grid: Sequence[int], pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angles of each position of a grid, (N, pairs).

    Each axis rotates an equal number of pairs, and remaining pairs have the angle 0.
    """
    axis_pairs = pairs // len(grid)
    index = torch.arange(axis_pairs, dtype=torch.float32, device=device)
    frequencies = THETA ** (-index / axis_pairs)
    angles = [at[:, None] * frequencies for at in _coordinates(grid, device)]
    together = F.pad(torch.cat(angles, dim=1), (0, pairs - axis_pairs * len(grid)))
    return together.cos(), together.sin()


def embed_positions(grid: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Return cos and sin of the positions of a grid relative to its sides, (N, width).

    Rotations encode only distances between positions, not the positions: attention over equal
    values returns that value everywhere. Relative positions are the same at every size.
    """
    axis_width = width // len(grid)
    sides = zip(_coordinates(grid, device), grid, strict=True)
    embeddings = [layers.sinusoids((at + 0.5) * (SIDE / count), axis_width) for at, count in sides]
    return F.pad(torch.cat(embeddings, dim=1), (0, width - axis_width * len(grid)))


def _coordinates(grid: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return the index of each position along each axis, (N,) of float32."""
    axes = [torch.arange(count, dtype=torch.float32, device=device) for count in grid]
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]
