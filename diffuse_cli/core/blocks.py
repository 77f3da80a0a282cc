"""The parts a U-Net is built of: residual blocks, attention, and changes of size.

Parameter names are those of diffusers' `UNet2DModel` where it has the part. The last layer of
every block begins at zero, so that the block begins as the identity (Ho et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.config import UNetConfig
from diffuse_cli.core.dropout import Dropout
from diffuse_cli.core.norms import GroupNorm
from diffuse_cli.errors import lookup

Resize = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """(B, C, H, W) as it is."""
    return x


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, H/2, W/2): means of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W): nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """norm, SiLU, conv; time; norm, SiLU, dropout, conv; and the input added.

    The time is added to the features, or scales and shifts the second norm (adaptive group norm;
    Dhariwal & Nichol 2021, section 3.1). `resize` acts on both branches, before the first
    convolution (the BigGAN block; Brock et al. 2019, appendix B).
    """

    def __init__(
        self, config: UNetConfig, before: int, after: int, resize: Resize = unchanged
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = config.scale_shift, resize
        self.norm1 = norm(config, before)
        self.conv1 = conv(before, after)
        self.time_emb_proj = nn.Linear(config.time_channels, after * (2 if self.scale_shift else 1))
        self.norm2 = norm(config, after)
        self.dropout = Dropout(config.dropout)
        self.conv2 = zeroed(conv(after, after))
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W) resized; `emb` is (B, 4 * width), activated."""
        h = self.conv1(self.resize(self.norm1(x, silu=True)))
        h = timed(self.norm2, h, self.time_emb_proj(emb), self.scale_shift, silu=True)
        h = self.conv2(self.dropout(h))
        return h.add_(self.conv_shortcut(self.resize(x)))  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """Depthwise 7x7; time; norm; 1x1 to four times the width, GELU, dropout, 1x1 back; input added.

    The block of Liu et al. 2022, section 2, without its layer scale (the last convolution begins
    at zero instead), and with group norm, through which the time enters as in `ResBlock`. A change
    of width takes place in the last convolution, one of size before the first.
    """

    EXPANSION = 4

    def __init__(
        self, config: UNetConfig, before: int, after: int, resize: Resize = unchanged
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = config.scale_shift, resize
        self.dwconv = nn.Conv2d(before, before, 7, padding=3, groups=before)
        self.time_emb_proj = nn.Linear(
            config.time_channels, before * (2 if self.scale_shift else 1)
        )
        self.norm = norm(config, before)
        self.pwconv1 = nn.Conv2d(before, self.EXPANSION * after, 1)
        self.dropout = Dropout(config.dropout)
        self.pwconv2 = zeroed(nn.Conv2d(self.EXPANSION * after, after, 1))
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W) resized; `emb` is (B, 4 * width), activated."""
        x = self.resize(x)
        h = timed(self.norm, self.dwconv(x), self.time_emb_proj(emb), self.scale_shift)
        h = self.pwconv2(self.dropout(F.gelu(self.pwconv1(h))))
        return h.add_(self.conv_shortcut(x))  # type: ignore[no-any-return]


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResBlock,
    "convnext": ConvNeXt,
}
"""Residual blocks `(config, before, after, resize)` by the name of `UNetConfig.block`."""


def residual_block(
    config: UNetConfig, before: int, after: int, resize: Resize = unchanged
) -> nn.Module:
    """A residual block of the kind that the network has.

    Raises:
        UsageError: no such kind.
    """
    return lookup(BLOCKS, config.block, "[unet] block")(config, before, after, resize)


def timed(
    norm: GroupNorm, h: Tensor, time: Tensor, scale_shift: bool, *, silu: bool = False
) -> Tensor:
    """norm(h) * (1 + scale) + shift, with (scale, shift) = `time`, (B, 2C); or norm(h + time),
    (B, C). `h` is a convolution's result and may be written over."""
    if scale_shift:
        return norm(h, *time.chunk(2, dim=1), silu=silu)  # type: ignore[no-any-return]
    return norm(h.add_(time[:, :, None, None]), silu=silu)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over the pixels, and the input added (Ho et al. 2020, appendix B)."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.heads = config.heads_at(width)
        self.group_norm = norm(config, width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([zeroed(nn.Linear(width, width))])

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving."""
        height, length = x.shape[2:]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self._project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.to_out[0](mixed).transpose(1, 2)
        added: Tensor = mixed.unflatten(2, (height, length)).add_(x)
        return added

    def _project(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values, one beside the other, in one product."""
        parts = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([part.weight for part in parts])
        return F.linear(tokens, weight, torch.cat([part.bias for part in parts]))


SCORES = 2**24
"""Products of queries and keys that may be kept at a time on a processor."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), for (B, heads, N, D).

    Fused, but for bfloat16 on a processor: there two batched products take a third of the time and
    keep the scores, of which an image has few.
    """
    scores = q.shape[0] * q.shape[1] * q.shape[2] ** 2
    apart = q.device.type == "cpu" and q.dtype == torch.bfloat16 and scores <= SCORES
    if not apart or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    return weighted(q, k, v)


def weighted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend`, as it is written."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), dim=-1) @ v


class Downsample(nn.Module):
    """A convolution of stride 2, padded all round or, with padding 0, at the right and bottom
    alone (as TensorFlow pads)."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.padding = config.downsample_padding
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=self.padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2); the time does not enter."""
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution; computed as one transposed convolution.

    To repeat every pixel is a transposed convolution of stride 2 with a 2x2 kernel of ones. With
    the 3x3 kernel after it, it is one with a 4x4 kernel, the full convolution of the two: 16
    products for a pixel of the small image instead of 9 for each of four, and the large image
    between them is never made.
    """

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W); the time does not enter."""
        y = F.conv_transpose2d(x, self._kernel(), stride=2, padding=1)
        # Apart, since oneDNN takes as long for the bias's gradient as for half the kernel's.
        return y.add_(self.conv.bias.to(y.dtype)[:, None, None])  # type: ignore[union-attr]

    def _kernel(self) -> Tensor:
        """(in, out, 4, 4): the flipped kernel, put at the four places of a 2x2 square and added."""
        weight = self.conv.weight.transpose(0, 1).flip(2, 3)
        rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
        kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
        return kernel.contiguous(memory_format=torch.channels_last)


def change_of_size(config: UNetConfig, width: int, resize: Resize) -> nn.Module:
    """What halves or doubles the feature maps of a level: a residual block, or a convolution."""
    if config.resblock_updown:
        return residual_block(config, width, width, resize)
    return Downsample(config, width) if resize is halved else Upsample(config, width)


def conv(before: int, after: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(before, after, 3, padding=1)


def norm(config: UNetConfig, width: int) -> GroupNorm:
    """The normalisation of every block."""
    return GroupNorm(config.groups, width, eps=config.norm_eps)


def zeroed(module: Any) -> Any:
    """Set a layer to zero, so that its block begins as the identity (Ho et al. 2020)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Give convolutions and linear layers weights of this precision, where autocast would cast them
    anew in every evaluation; what is computed stays the same.

    The kernel of `Upsample` is added up before it is cast, and stays.
    """
    for child in module.children():
        if isinstance(child, nn.Conv2d | nn.Linear):
            child.to(dtype)
        elif not isinstance(child, Upsample):
            cast_products(child, dtype)


def count_parameters(module: nn.Module) -> int:
    """The number of trained numbers of a network."""
    return sum(p.numel() for p in module.parameters())
