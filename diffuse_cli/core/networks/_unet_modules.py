"""Modules of `unet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core import kernels
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.networks import Run, layers, run_directly
from diffuse_cli.core.networks._unet_config import Config
from diffuse_cli.core.registry import Registry, lookup
from diffuse_cli.core.space import Space


class UNet(layers.ConditionedNetwork):
    """The U-Net.

    Attributes:
        run_block: the function that runs blocks: `run_directly`, or `run_checkpointed` to save
            memory.
        ends: the modules between features and images, times, classes or metadata.
    """

    ends = (
        "conv_in", "conv_out", "time_embedding", "time_emb_proj", "class_embedding",
        "row_embedding", "augment_embedding",
    )  # fmt: skip

    def __init__(
        self, config: Config, space: Space, conditions: Conditions, out_channels: int
    ) -> None:
        super().__init__(conditions)
        self.patch = config.patch
        self.run_block: Run = run_directly
        parts, upward = (UNetParts(c, space.dims) for c in (config, config.up_config))
        width, time_width = config.width, config.time_channels
        widths, attends = config.widths, config.attends(space.size)
        folded = config.patch**space.dims
        self.conv_in = parts.conv((space.channels + self.given_channels) * folded, width)
        embedding = lookup(layers.TIME_EMBEDDINGS, config.time_embedding, "time_embedding")
        features = config.time_channels // 4
        self.time_proj = embedding(features, config.freq_shift, config.flip_sin_to_cos)
        self._embed(conditions, self.time_proj.width, time_width)

        self.down_blocks = nn.ModuleList()
        skips, before = [width], width
        for i, (after, attends_here) in enumerate(zip(widths, attends, strict=True)):
            last = i == len(widths) - 1
            inputs = [before] + [after] * (config.blocks - 1)
            resize = None if last else halve_size
            self.down_blocks.append(UNetLevel(parts, inputs, after, attends_here, resize))
            skips += [after] * (config.blocks + (not last))
            before = after
        self.mid_block = MiddleBlock(parts, before)
        self.up_blocks = nn.ModuleList()
        for i, (after, attends_here) in enumerate(zip(widths[::-1], attends[::-1], strict=True)):
            inputs = [w + skips.pop() for w in [before] + [after] * config.blocks]
            resize = None if i == len(widths) - 1 else double_size
            self.up_blocks.append(UNetLevel(upward, inputs, after, attends_here, resize))
            before = after
        self.conv_norm_out = parts.norm(before)
        self.conv_out = layers.init_zeros(parts.conv(before, out_channels * folded))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        given: Tensor | None = None,
        row: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, C, *size) at times t (B,) in 0 ... 1000 to (B, out_channels, *size).

        Args:
            label: the class (B,), int64, for a network with classes. K or None means "no class".
            given: the conditioning array (B, C', *size). None means zeros.
            row: the codes of the metadata (B, codes). NaN or None means a missing value.
            augment: the parameters of `core.augmentations`. None means no change.
        """
        emb = F.silu(self.embed_conditions(self.time_proj(t), label, row, augment))
        x = kernels.cast_as_autocast(self.concat_given(x, given))  # faster to arrange in half
        h = self.conv_in(kernels.arrange_memory(layers.fold_patches(x, self.patch)))
        skips = [h]
        for level in self.down_blocks:
            h, states = level(h, emb, self.run_block)
            skips += states
        h = self.mid_block(h, emb, self.run_block)
        for level in self.up_blocks:
            h, _ = level(h, emb, self.run_block, skips)
        y: Tensor = self.run_block(self._read_out, h)
        return layers.unfold_patches(y, self.patch).contiguous()

    def _read_out(self, h: Tensor) -> Tensor:
        return self.conv_out(self.conv_norm_out(h, silu=True))  # type: ignore[no-any-return]


class UNetLevel(nn.Module):
    """Blocks of one resolution on the way down or up, and the change of size after them."""

    def __init__(
        self, parts: UNetParts, inputs: list[int], width: int, attend: bool, resize: Resize | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(parts.residual(w, width) for w in inputs)
        if attend:
            self.attentions = nn.ModuleList(SpatialAttention(parts, width) for _ in inputs)
        if resize is halve_size:
            self.downsamplers = nn.ModuleList([parts.resize_layer(width, halve_size)])
        if resize is double_size:
            self.upsamplers = nn.ModuleList([parts.resize_layer(width, double_size)])
        self.attend, self.resize = attend, resize

    def forward(
        self, h: Tensor, emb: Tensor, run: Run = run_directly, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the output, and without `skips` all states. It pops `skips` from their end."""
        states = []
        for i in range(len(self.resnets)):
            h = run(self._block, i, h, emb, skips.pop() if skips is not None else None)
            if skips is None:
                states.append(h)
        if self.resize is halve_size:
            h = run(self.downsamplers[0], h, emb)
            states.append(h)
        if self.resize is double_size:
            h = run(self.upsamplers[0], h, emb)
        return h, states

    def _block(self, i: int, h: Tensor, emb: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        h = self.resnets[i](h, emb)
        return self.attentions[i](h) if self.attend else h


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, parts: UNetParts, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(parts.residual(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(parts, width)])

    def forward(self, h: Tensor, emb: Tensor, run: Run = run_directly) -> Tensor:
        """Transform features without changing their shape."""
        h = run(self.attentions[0], run(self.resnets[0], h, emb))
        return run(self.resnets[1], h, emb)


# -- blocks ---------------------------------------------------------------------------------------

# Residual blocks, attention, and changes of size.
#
# Parameters have the names of diffusers' `UNet2DModel`. The last layer of each block starts at
# zero, so that the block starts as the identity (Ho et al. 2020).

Resize = Callable[[Tensor], Tensor]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class UNetParts:
    """Factory of the layers of one U-Net."""

    config: Config
    dims: int

    def conv(self, before: int, after: int, kernel: int = 3, **options: Any) -> nn.Module:
        """Return a convolution, padded to keep the size by default."""
        return CONVOLUTIONS[self.dims](before, after, kernel, **{"padding": kernel // 2, **options})

    def norm(self, width: int) -> kernels.GroupNorm:
        """Return the group norm of every block."""
        return kernels.GroupNorm(self.config.groups, width, eps=self.config.norm_eps)

    def time(self, width: int) -> nn.Linear:
        """Return the layer from the time embedding to shifts, and if configured scales."""
        return nn.Linear(self.config.time_channels, width * (2 if self.config.scale_shift else 1))

    def residual(self, before: int, after: int, resize: Resize | None = None) -> nn.Module:
        """Return a residual block of the kind `Config.block`."""
        block = lookup(BLOCKS, self.config.block, "block")
        return block(self, before, after, resize or keep_size)

    def resize_layer(self, width: int, resize: Resize) -> nn.Module:
        """Return the residual block or convolution that halves or doubles a level's size."""
        if self.config.resblock_updown:
            return self.residual(width, width, resize)
        return Downsample(self, width) if resize is halve_size else Upsample(self, width)


def keep_size(x: Tensor) -> Tensor:
    """Return (B, C, *size) unchanged."""
    return x


def halve_size(x: Tensor) -> Tensor:
    """Halve the size of (B, C, *size) by means of 2 values along each dimension."""
    return POOLS[x.ndim - 2](x, 2)


def double_size(x: Tensor) -> Tensor:
    """Double the size of (B, C, *size) by nearest neighbors."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, conv, time, norm, SiLU, dropout, conv, plus the input.

    The time is added to the features, or scales and shifts the second norm (adaptive group norm,
    first in the code of Nichol & Dhariwal 2021, named in Dhariwal & Nichol 2021, section 3.1).
    `resize` acts on both branches before the first convolution (Brock et al. 2019, appendix B).
    """

    def __init__(self, parts: UNetParts, before: int, after: int, resize: Resize) -> None:
        super().__init__()
        self.scale_shift, self.resize = parts.config.scale_shift, resize
        self.norm1 = parts.norm(before)
        self.conv1 = parts.conv(before, after)
        self.time_emb_proj = parts.time(after)
        self.norm2 = parts.norm(after)
        self.dropout = kernels.Dropout(parts.config.dropout)
        self.conv2 = layers.init_zeros(parts.conv(after, after))
        self.conv_shortcut = parts.conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, before, *size) to (B, after, *size), resized, with activated `emb`."""
        h = self.conv1(self.resize(self.norm1(x, silu=True)))
        h = add_time(self.norm2, h, self.time_emb_proj(emb), self.scale_shift, silu=True)
        h = self.conv2(self.dropout(h))
        return h.add_(self.conv_shortcut(self.resize(x)))  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """Depthwise 7x7, time, norm, 1x1 to four times the width, GELU, dropout, 1x1 back, plus input.

    It is the block of Liu et al. 2022b, section 2, with two changes: the last convolution starts at
    zero instead of layer scale, and the norm is a group norm, where the time enters as in
    `ResBlock`. The last convolution changes the width, and `resize` comes first.
    """

    EXPANSION = 4

    def __init__(self, parts: UNetParts, before: int, after: int, resize: Resize) -> None:
        super().__init__()
        self.scale_shift, self.resize = parts.config.scale_shift, resize
        self.dwconv = parts.conv(before, before, 7, groups=before)
        self.time_emb_proj = parts.time(before)
        self.norm = parts.norm(before)
        self.pwconv1 = parts.conv(before, self.EXPANSION * after, 1)
        self.dropout = kernels.Dropout(parts.config.dropout)
        self.pwconv2 = layers.init_zeros(parts.conv(self.EXPANSION * after, after, 1))
        self.conv_shortcut = parts.conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, before, *size) to (B, after, *size), resized, with activated `emb`."""
        x = self.resize(x)
        h = add_time(self.norm, self.dwconv(x), self.time_emb_proj(emb), self.scale_shift)
        h = self.pwconv2(self.dropout(F.gelu(self.pwconv1(h))))
        return h.add_(self.conv_shortcut(x))  # type: ignore[no-any-return]


BLOCKS: Registry[Callable[[UNetParts, int, int, Resize], nn.Module]] = Registry(
    "blocks", {"resnet": ResBlock, "convnext": ConvNeXt}
)
"""Residual blocks `(parts, before, after, resize)` by the name of `Config.block`."""


def add_time(
    norm: kernels.GroupNorm, h: Tensor, time: Tensor, scale_shift: bool, *, silu: bool = False
) -> Tensor:
    """Return norm(h) * (1 + scale) + shift, both in `time` (B, 2C), or norm(h + time), time (B, C).

    It overwrites `h`.
    """
    if scale_shift:
        return norm(h, *time.chunk(2, dim=1), silu=silu)  # type: ignore[no-any-return]
    return norm(h.add_(kernels.expand_channels(time, h)), silu=silu)  # type: ignore[no-any-return]


class SpatialAttention(nn.Module):
    """Self-attention over all positions, plus the input (Ho et al. 2020, appendix B)."""

    def __init__(self, parts: UNetParts, width: int) -> None:
        super().__init__()
        self.heads = parts.config.heads_at(width)
        self.group_norm = parts.norm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([layers.init_zeros(nn.Linear(width, width))])

    def forward(self, x: Tensor) -> Tensor:
        """Mix all positions of (B, C, *size)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self._project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = kernels.attend(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.to_out[0](mixed).transpose(1, 2)
        added: Tensor = mixed.unflatten(2, x.shape[2:])
        if added.ndim == 4:  # channels are last here, which is slow on some devices
            added = kernels.arrange_memory(added)
        return added.add_(x)

    def _project(self, tokens: Tensor) -> Tensor:
        """Return queries, keys and values side by side, computed in one product."""
        parts = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([part.weight for part in parts])
        return F.linear(tokens, weight, torch.cat([part.bias for part in parts]))


class Downsample(nn.Module):
    """Convolution of stride 2. With padding 0 it pads only the far ends, as in TensorFlow."""

    def __init__(self, parts: UNetParts, width: int) -> None:
        super().__init__()
        self.padding = parts.config.downsample_padding
        self.conv = parts.conv(width, width, stride=2, padding=self.padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Halve the size of (B, C, *size). `emb` is not used."""
        return self.conv(x if self.padding else F.pad(x, (0, 1) * (x.ndim - 2)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbors and a convolution, computed as one transposed convolution.

    Repeating each position is a transposed convolution of stride 2 with a 2-wide kernel of ones.
    Its full convolution with the 3-wide kernel is 4 wide. In two dimensions that takes 16 products
    per pixel of the small image instead of 4 times 9, without a large intermediate image.
    """

    keeps_precision = True
    """Whether `cast_weights` skips the module, because it sums the kernel before casting it."""

    def __init__(self, parts: UNetParts, width: int) -> None:
        super().__init__()
        self.conv = parts.conv(width, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Double the size of (B, C, *size). `emb` is not used."""
        y = TRANSPOSED[x.ndim - 2](x, self._kernel(), stride=2, padding=1)
        bias: Tensor = self.conv.bias  # type: ignore[assignment]
        # Added separately, because oneDNN's gradient of the bias is slow: half the kernel's time.
        return y.add_(kernels.expand_channels(bias.to(y.dtype)[None], y))

    def _kernel(self) -> Tensor:
        """Return the sum of the flipped kernel at all offsets 0 and 1, (in, out, 4, ...)."""
        kernel: Tensor = self.conv.weight.transpose(0, 1)  # type: ignore[operator]
        dims = kernel.ndim - 2
        kernel = kernel.flip(tuple(range(2, kernel.ndim)))  # a star here fails in torch.compile
        for last in reversed(range(dims)):  # F.pad counts dimensions from the last one
            one = [0] * (2 * last)
            kernel = F.pad(kernel, [*one, 0, 1]) + F.pad(kernel, [*one, 1, 0])
        return kernels.arrange_memory(kernel)
