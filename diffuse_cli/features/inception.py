"""The Inception network of 2015 on 299x299 images: the 2048 features that FID is defined on.

Inception-v3 (Szegedy et al. 2016) as TensorFlow's authors released it in December 2015. It departs
from the paper in its pooling (averages leave the padding out; the last block takes a maximum) and
resizes as TensorFlow 1 did, without a half-pixel shift and without antialiasing. The attributes
below carry the names of the published weights file.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diffuse_cli.events import Work
from diffuse_cli.features import FeatureNetwork, exact
from diffuse_cli.features._weights import Published, fill, obtain, read

NAME = "inception"
PUBLISHED = Published(
    network=NAME,
    file="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
)

RESIZE = "299x299, bilinear as in TensorFlow 1"
SIZE = 299
DIM = 2048
BATCH_NORM_EPS = 1e-3

Kernel = tuple[int, int]


class Step(NamedTuple):
    """A convolution: padded to keep its size where the stride is 1, not padded where it is 2."""

    name: str
    width: int
    kernel: Kernel = (1, 1)
    stride: int = 1


class Mix(NamedTuple):
    """A block: branches side by side, the last of which pools.

    Attributes:
        branches: steps one after the other; those of a tuple in the place of a step go side by
            side.
        pool: `mean` or `max` over 3x3, or `halve`, a maximum with a stride of 2.
        pool_width: of the 1x1 convolution after the pool; 0 where there is none.
    """

    branches: tuple[tuple[Step | tuple[Step, ...], ...], ...]
    pool: str
    pool_width: int = 0


ONE, THREE, FIVE = (1, 1), (3, 3), (5, 5)
ROW3, COLUMN3, ROW7, COLUMN7 = (1, 3), (3, 1), (1, 7), (7, 1)


def _fives(pool_width: int) -> Mix:
    return Mix(
        (
            (Step("branch1x1", 64),),
            (Step("branch5x5_1", 48), Step("branch5x5_2", 64, FIVE)),
            (
                Step("branch3x3dbl_1", 64),
                Step("branch3x3dbl_2", 96, THREE),
                Step("branch3x3dbl_3", 96, THREE),
            ),
        ),
        "mean",
        pool_width,
    )


def _sevens(width: int) -> Mix:
    return Mix(
        (
            (Step("branch1x1", 192),),
            (
                Step("branch7x7_1", width),
                Step("branch7x7_2", width, ROW7),
                Step("branch7x7_3", 192, COLUMN7),
            ),
            (
                Step("branch7x7dbl_1", width),
                Step("branch7x7dbl_2", width, COLUMN7),
                Step("branch7x7dbl_3", width, ROW7),
                Step("branch7x7dbl_4", width, COLUMN7),
                Step("branch7x7dbl_5", 192, ROW7),
            ),
        ),
        "mean",
        192,
    )


def _wide(pool: str) -> Mix:
    def crossed(name: str) -> tuple[Step, ...]:
        return Step(f"{name}a", 384, ROW3), Step(f"{name}b", 384, COLUMN3)

    return Mix(
        (
            (Step("branch1x1", 320),),
            (Step("branch3x3_1", 384), crossed("branch3x3_2")),
            (
                Step("branch3x3dbl_1", 448),
                Step("branch3x3dbl_2", 384, THREE),
                crossed("branch3x3dbl_3"),
            ),
        ),
        pool,
        192,
    )


MIXES = {
    "Mixed_5b": _fives(32),
    "Mixed_5c": _fives(64),
    "Mixed_5d": _fives(64),
    "Mixed_6a": Mix(
        (
            (Step("branch3x3", 384, THREE, 2),),
            (
                Step("branch3x3dbl_1", 64),
                Step("branch3x3dbl_2", 96, THREE),
                Step("branch3x3dbl_3", 96, THREE, 2),
            ),
        ),
        "halve",
    ),
    "Mixed_6b": _sevens(128),
    "Mixed_6c": _sevens(160),
    "Mixed_6d": _sevens(160),
    "Mixed_6e": _sevens(192),
    "Mixed_7a": Mix(
        (
            (Step("branch3x3_1", 192), Step("branch3x3_2", 320, THREE, 2)),
            (
                Step("branch7x7x3_1", 192),
                Step("branch7x7x3_2", 192, ROW7),
                Step("branch7x7x3_3", 192, COLUMN7),
                Step("branch7x7x3_4", 192, THREE, 2),
            ),
        ),
        "halve",
    ),
    "Mixed_7b": _wide("mean"),
    "Mixed_7c": _wide("max"),
}


class Conv(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, width_in: int, width: int, kernel: Kernel, stride: int, padding: Kernel):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Multiply the BatchNorm into the convolution: the same function, faster."""
        self.conv = fuse_conv_bn_eval(self.conv, self.bn)
        self.bn = nn.Identity()  # type: ignore[assignment]


class Mixed(nn.Module):
    """A block of `MIXES`."""

    def __init__(self, width_in: int, mix: Mix) -> None:
        super().__init__()
        self.mix = mix
        self.width = mix.pool_width or width_in
        for branch in mix.branches:
            width = width_in
            for step in branch:
                forks = step if not isinstance(step, Step) else (step,)
                for name, out, kernel, stride in forks:
                    padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
                    self.add_module(name, Conv(width, out, kernel, stride, padding))
                width = sum(fork.width for fork in forks)
            self.width += width
        if mix.pool_width:
            self.branch_pool = Conv(width_in, mix.pool_width, ONE, 1, (0, 0))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.mix.branches:
            y = x
            for step in branch:
                forks = step if not isinstance(step, Step) else (step,)
                parts = [self.get_submodule(fork.name)(y) for fork in forks]
                y = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            found.append(y)
        pooled = _pool(x, self.mix.pool)
        found.append(self.branch_pool(pooled) if self.mix.pool_width else pooled)
        return torch.cat(found, 1)


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "mean":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 2) if kind == "halve" else F.max_pool2d(x, 3, 1, 1)


class Inception(nn.Module):
    """Normalised RGB (N, 3, 299, 299) -> globally pooled features (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, 2, (0, 0))
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE, 1, (0, 0))
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE, 1, (1, 1))
        self.Conv2d_3b_1x1 = Conv(64, 80, ONE, 1, (0, 0))
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE, 1, (0, 0))
        width = 192
        for name, mix in MIXES.items():
            block = Mixed(width, mix)
            self.add_module(name, block)
            width = block.width

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_pool(x, "halve")))
        x = _pool(x, "halve")
        for name in MIXES:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def preprocess(pixels: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> what the network is shown, float32 (N, 3, 299, 299)."""
    x = pixels.float()
    low, high, part = _places(x.shape[3], x.device)
    left = x.index_select(3, low)
    x = left + (x.index_select(3, high) - left) * part
    low, high, part = _places(x.shape[2], x.device)
    top = x.index_select(2, low)
    x = top + (x.index_select(2, high) - top) * part[:, None]
    return (x - 128) / 128


def _places(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two neighbours of each of 299 places on a side, and how far it is to the second.

    As in TensorFlow 1: place i lies at i * length / 299, and the last pixel goes on at the end.
    """
    place = torch.arange(SIZE, device=device) * torch.tensor(length / SIZE, dtype=torch.float32)
    low = place.long()
    return low, (low + 1).clamp_max(length - 1), place - low


def build(file: Path) -> Inception:
    """The network with the weights of `file`, on the CPU, for inference.

    Raises:
        ModelFileError: the file cannot be read, or is not the published one.
    """
    state = read(file, PUBLISHED)
    # The classifier stays behind: the features are what it would be given.
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    # On the meta device nothing is drawn from the caller's random generator.
    with torch.device("meta"):
        network = Inception()
    fill(network, state, file)
    for module in network.modules():
        if isinstance(module, Conv):
            module.fold()
    return network


def find() -> Work[Path]:
    """Where the weights lie, downloaded if they must be.

    Raises:
        ModelFileError: they cannot be had.
    """
    return (yield from obtain(PUBLISHED))


def load(device: str | torch.device, file: Path) -> FeatureNetwork:
    """Inception on `device`, float32, with the weights of `file`.

    Raises:
        ModelFileError: the file cannot be read, or is not the published one.
    """
    device = torch.device(device)
    network = build(file).to(device)
    # Channels last: convolutions of a CPU take half the time.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(pixels: Tensor) -> Tensor:
        x = preprocess(pixels).contiguous(memory_format=torch.channels_last)
        with exact():
            features: Tensor = network(x)
        return features

    return FeatureNetwork(NAME, DIM, PUBLISHED.sha256, device, forward, RESIZE)
