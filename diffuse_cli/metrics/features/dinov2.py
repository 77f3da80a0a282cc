"""DINOv2 ViT-L/14 on 224x224 images: the 1024 features of "FD-DINOv2" (Stein et al. 2023).

The network is a vision transformer (Dosovitskiy et al. 2021) with a learned scale on every residual
(Oquab et al. 2023). Its features are the normalized class token. Preprocessing follows dgm-eval,
the program of Stein et al. 2023: Pillow's bicubic resize, then ImageNet's mean and standard
deviation. Attributes have the names of the published weights file.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.metrics.features.published_weights import PublishedWeights, build_network

PUBLISHED = PublishedWeights(
    network="dinov2",
    file="dinov2_vitl14_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    size=1_217_586_395,
)

RESIZE = "224x224, bicubic, antialiased, rounded to levels"
SIZE = 224
NORM_EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

OFFSET = 0.1
"""Offset in the resizing of the position grid by (16 + 0.1) / 37, which the released code uses to
avoid rounding errors."""


class Shape(NamedTuple):
    """Sizes of the network. `grid` is the number of patches per side of training images."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    grid: int = 37


LARGE = Shape()
DIM = LARGE.width


class DinoAttention(nn.Module):
    """Self-attention of tokens (N, L, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        tokens: Tensor = self.proj(y.reshape(n, length, width))
        return tokens


class LayerScale(nn.Module):
    """Learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DinoBlock(nn.Module):
    """Attention and perceptron, each with a norm before, a scale after, and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = DinoAttention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        first, second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=first, gelu=nn.GELU(), fc2=second))
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class VisionTransformer(nn.Module):
    """Network from normalized RGB (N, 3, 224, 224) to the class token (N, width)."""

    def __init__(self, shape: Shape = LARGE) -> None:
        super().__init__()
        width = shape.width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, shape.patch, shape.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.grid**2, width))
        self.blocks = nn.Sequential(*(DinoBlock(width, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)  # (N, L, C)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1)
        class_token: Tensor = self.norm(self.blocks(tokens + self.pos_embed)[:, 0])
        return class_token


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Resize embeddings (1, 1 + G^2, C) of a square grid to `side` patches per side."""
    grid = math.isqrt(positions.shape[1] - 1)
    if side == grid:
        return positions
    plane = positions[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    factor = (side + OFFSET) / grid
    plane = F.interpolate(plane, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([positions[:, :1], plane.flatten(2).transpose(1, 2)], 1)


def preprocess(pixels: Tensor) -> Tensor:
    """Turn uint8 RGB (N, 3, H, W) into the network's input, float32 (N, 3, 224, 224).

    Width and then height are resized, each rounded to levels, like Pillow at the time of the paper.
    """
    x = pixels.float()
    for size in ((x.shape[2], SIZE), (SIZE, SIZE)):
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
    return (x / 255 - mean) / std


def build(file: Path, shape: Shape = LARGE) -> VisionTransformer:
    """Build the network, see `FeatureModule`."""
    network = build_network(lambda: VisionTransformer(shape), file, PUBLISHED, "mask_token")
    positions = resize_positions(network.pos_embed, SIZE // shape.patch)
    network.pos_embed = nn.Parameter(positions, requires_grad=False)
    return network
