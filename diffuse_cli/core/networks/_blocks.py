"""The parts of a U-Net: residual blocks, attention, and changes of size.

Parameters are named as in diffusers' `UNet2DModel`. The last layer of each block starts at zero, so
the block starts as the identity (Ho et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core.attention import attend
from diffuse_cli.core.dropout import Dropout
from diffuse_cli.core.errors import lookup
from diffuse_cli.core.kernels import GroupNorm, over_size
from diffuse_cli.core.layout import laid_out
from diffuse_cli.core.networks._start import zeroed
from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from diffuse_cli.core.networks.unet import Config

Resize = Callable[[Tensor], Tensor]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Parts:
    """Makes the layers of one U-Net."""

    config: Config
    dims: int

    def conv(self, before: int, after: int, kernel: int = 3, **options: Any) -> nn.Module:
        """A convolution, padded to keep the size by default."""
        return CONVOLUTIONS[self.dims](before, after, kernel, **{"padding": kernel // 2, **options})

    def norm(self, width: int) -> GroupNorm:
        """The group norm of every block."""
        return GroupNorm(self.config.groups, width, eps=self.config.norm_eps)

    def time(self, width: int) -> nn.Linear:
        """From the time embedding to the shifts of `width` channels, and to scales if asked."""
        return nn.Linear(self.config.time_channels, width * (2 if self.config.scale_shift else 1))

    def residual(self, before: int, after: int, resize: Resize | None = None) -> nn.Module:
        """A residual block of the kind `Config.block`."""
        block = lookup(BLOCKS, self.config.block, "block")
        return block(self, before, after, resize or unchanged)

    def resized(self, width: int, resize: Resize) -> nn.Module:
        """What halves or doubles a level's maps: a residual block or a convolution."""
        if self.config.resblock_updown:
            return self.residual(width, width, resize)
        return Downsample(self, width) if resize is halved else Upsample(self, width)


def unchanged(x: Tensor) -> Tensor:
    """(B, C, *size) as it is."""
    return x


def halved(x: Tensor) -> Tensor:
    """(B, C, *size) to half the size: means of 2 along each dimension."""
    return POOLS[x.ndim - 2](x, 2)


def doubled(x: Tensor) -> Tensor:
    """(B, C, *size) to twice the size: nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """norm, SiLU, conv; time; norm, SiLU, dropout, conv; plus the input.

    The time is added to the features, or scales and shifts the second norm (adaptive group norm,
    first in the code of Nichol & Dhariwal 2021; named in Dhariwal & Nichol 2021, section 3.1).
    `resize` acts on both branches before the first convolution (Brock et al. 2019, appendix B).
    """

    def __init__(self, parts: Parts, before: int, after: int, resize: Resize) -> None:
        super().__init__()
        self.scale_shift, self.resize = parts.config.scale_shift, resize
        self.norm1 = parts.norm(before)
        self.conv1 = parts.conv(before, after)
        self.time_emb_proj = parts.time(after)
        self.norm2 = parts.norm(after)
        self.dropout = Dropout(parts.config.dropout)
        self.conv2 = zeroed(parts.conv(after, after))
        self.conv_shortcut = parts.conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, before, *size) to (B, after, *size) resized; `emb` is (B, 4 * width), activated."""
        h = self.conv1(self.resize(self.norm1(x, silu=True)))
        h = timed(self.norm2, h, self.time_emb_proj(emb), self.scale_shift, silu=True)
        h = self.conv2(self.dropout(h))
        return h.add_(self.conv_shortcut(self.resize(x)))  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """Depthwise 7x7; time; norm; 1x1 to four times the width, GELU, dropout, 1x1 back; plus input.

    The block of Liu et al. 2022b, section 2, with a last convolution that starts at zero instead of
    layer scale, and with group norm, where the time enters as in `ResBlock`. The last convolution
    changes the width; `resize` comes first.
    """

    EXPANSION = 4

    def __init__(self, parts: Parts, before: int, after: int, resize: Resize) -> None:
        super().__init__()
        self.scale_shift, self.resize = parts.config.scale_shift, resize
        self.dwconv = parts.conv(before, before, 7, groups=before)
        self.time_emb_proj = parts.time(before)
        self.norm = parts.norm(before)
        self.pwconv1 = parts.conv(before, self.EXPANSION * after, 1)
        self.dropout = Dropout(parts.config.dropout)
        self.pwconv2 = zeroed(parts.conv(self.EXPANSION * after, after, 1))
        self.conv_shortcut = parts.conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, before, *size) to (B, after, *size) resized; `emb` is (B, 4 * width), activated."""
        x = self.resize(x)
        h = timed(self.norm, self.dwconv(x), self.time_emb_proj(emb), self.scale_shift)
        h = self.pwconv2(self.dropout(F.gelu(self.pwconv1(h))))
        return h.add_(self.conv_shortcut(x))  # type: ignore[no-any-return]


BLOCKS: Registry[Callable[[Parts, int, int, Resize], nn.Module]] = Registry(
    "blocks", {"resnet": ResBlock, "convnext": ConvNeXt}
)
"""Residual blocks `(parts, before, after, resize)` by the name of `Config.block`."""


def timed(
    norm: GroupNorm, h: Tensor, time: Tensor, scale_shift: bool, *, silu: bool = False
) -> Tensor:
    """norm(h) * (1 + scale) + shift, where `time` (B, 2C) is both; or norm(h + time), time (B, C).

    Overwrites `h`.
    """
    if scale_shift:
        return norm(h, *time.chunk(2, dim=1), silu=silu)  # type: ignore[no-any-return]
    return norm(h.add_(over_size(time, h)), silu=silu)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over all positions, plus the input (Ho et al. 2020, appendix B)."""

    def __init__(self, parts: Parts, width: int) -> None:
        super().__init__()
        self.heads = parts.config.heads_at(width)
        self.group_norm = parts.norm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([zeroed(nn.Linear(width, width))])

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self._project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.to_out[0](mixed).transpose(1, 2)
        added: Tensor = mixed.unflatten(2, x.shape[2:])
        if added.ndim == 4:  # channels are last here, which not every device wants
            added = laid_out(added)
        return added.add_(x)

    def _project(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values side by side, in one product."""
        parts = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([part.weight for part in parts])
        return F.linear(tokens, weight, torch.cat([part.bias for part in parts]))


class Downsample(nn.Module):
    """A convolution of stride 2; with padding 0, padded at the far ends only, as in TensorFlow."""

    def __init__(self, parts: Parts, width: int) -> None:
        super().__init__()
        self.padding = parts.config.downsample_padding
        self.conv = parts.conv(width, width, stride=2, padding=self.padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, *size) to half the size; `emb` is not used."""
        return self.conv(x if self.padding else F.pad(x, (0, 1) * (x.ndim - 2)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution; computed as one transposed convolution.

    Repeating each position is a transposed convolution of stride 2 with a kernel of ones, 2 wide.
    Its full convolution with the 3-wide kernel is 4 wide: in two dimensions 16 products per pixel
    of the small image instead of 4 times 9, and no large image in between.
    """

    keeps_precision = True
    """The kernel is summed before it is cast."""

    def __init__(self, parts: Parts, width: int) -> None:
        super().__init__()
        self.conv = parts.conv(width, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C, *size) to twice the size; `emb` is not used."""
        y = TRANSPOSED[x.ndim - 2](x, self._kernel(), stride=2, padding=1)
        bias: Tensor = self.conv.bias  # type: ignore[assignment]
        # Added apart: in oneDNN the bias's gradient takes half as long as the kernel's.
        return y.add_(over_size(bias.to(y.dtype)[None], y))

    def _kernel(self) -> Tensor:
        """(in, out, 4, ...): the sum of the flipped kernel at all offsets 0 and 1."""
        kernel: Tensor = self.conv.weight.transpose(0, 1)  # type: ignore[operator]
        dims = kernel.ndim - 2
        kernel = kernel.flip(tuple(range(2, kernel.ndim)))  # a star here fails in torch.compile
        for last in reversed(range(dims)):  # F.pad counts dimensions from the last one
            one = [0] * (2 * last)
            kernel = F.pad(kernel, [*one, 0, 1]) + F.pad(kernel, [*one, 1, 0])
        return laid_out(kernel)
