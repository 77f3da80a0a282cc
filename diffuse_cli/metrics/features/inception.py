"""The Inception network of 2015 on 299x299 images, whose 2048 features define FID.

It is Inception-v3 (Szegedy et al. 2016) as TensorFlow's authors released it in December 2015. Its
pooling differs from the paper and from torchvision's network: averages ignore the padding, and the
last block uses a maximum. It resizes like TensorFlow 1, without a half-pixel shift and without
antialiasing. The published file uses torchvision's names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import inception as blocks

from diffuse_cli.metrics.features.published_weights import PublishedWeights, build_network, fold

PUBLISHED = PublishedWeights(
    network="inception",
    file="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
)

RESIZE = "299x299, bilinear as in TensorFlow 1"
SIZE = 299
DIM = 2048


average_pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
"""Average over 3x3 without the padding."""


class Block5x5(blocks.InceptionA):  # type: ignore[misc]
    """Block of 5x5 convolutions, whose average ignores the padding."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_pool(x)),
        ]


class Block7x7(blocks.InceptionC):  # type: ignore[misc]
    """Block of 7x7 convolutions, whose average ignores the padding."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return [self.branch1x1(x), once, twice, self.branch_pool(average_pool(x))]


class CrossedBlock(blocks.InceptionE):  # type: ignore[misc]
    """Block of crossed 3x3 convolutions, whose `pool` is set after construction."""

    pool: Callable[[Tensor], Tensor]

    def _forward(self, x: Tensor) -> list[Tensor]:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            *(self.branch3x3_2a(once), self.branch3x3_2b(once)),
            *(self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)),
            self.branch_pool(self.pool(x)),
        ]


class Inception(blocks.Inception3):  # type: ignore[misc]
    """Network from normalized RGB (N, 3, 299, 299) to globally pooled features (N, 2048)."""

    def __init__(self) -> None:
        parts = [
            blocks.BasicConv2d,
            Block5x5,
            blocks.InceptionB,
            Block7x7,
            blocks.InceptionD,
            CrossedBlock,
            blocks.InceptionAux,
        ]
        super().__init__(aux_logits=False, init_weights=False, inception_blocks=parts)
        self.Mixed_7b.pool, self.Mixed_7c.pool = average_pool, nn.MaxPool2d(3, 1, 1)
        # The features are the input of the classifier, which is removed.
        self.dropout, self.fc = nn.Identity(), nn.Identity()


def preprocess(pixels: Tensor) -> Tensor:
    """Turn uint8 RGB (N, 3, H, W) into the network's input, float32 (N, 3, 299, 299)."""
    x = pixels.float()
    for side in (3, 2):
        low, high, part = _neighbors(x.shape[side], x.device)
        lower, upper = x.index_select(side, low), x.index_select(side, high)
        x = lower + (upper - lower) * part.reshape(-1, *[1] * (3 - side))
    return ((x - 128) / 128).contiguous(memory_format=torch.channels_last)


def _neighbors(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two neighbors of each of 299 positions on a side, and the weight of the second.

    As in TensorFlow 1, position i is at i * length / 299, and the last pixel is repeated.
    """
    place = torch.arange(SIZE, device=device) * torch.tensor(length / SIZE, dtype=torch.float32)
    low = place.long()
    return low, (low + 1).clamp_max(length - 1), place - low


def build(file: Path) -> Inception:
    """Build the network, see `FeatureModule`."""
    network = build_network(Inception, file, PUBLISHED, "fc.")
    fold(network)
    # With channels last, convolutions on a CPU take half the time.
    network.to(memory_format=torch.channels_last)
    return network
