"""What a network is shown of the time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from diffuse_cli.core.networks.unet import Config


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of the timestep."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, time_width)."""
        return self.linear_2(F.silu(self.linear_1(x)))  # type: ignore[no-any-return]


class Sinusoids(nn.Module):
    """`sinusoids` with the frequency shift and order of a configuration; `width` numbers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.time_channels // 4
        self.shift, self.cos_first = config.freq_shift, config.flip_sin_to_cos

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        return sinusoids(t, self.width, shift=self.shift, cos_first=self.cos_first)


class Fourier(nn.Module):
    """cos and sin of t at random frequencies that stay as they are; `width` numbers.

    The Gaussian Fourier features of NCSN++ (Song et al. 2021b, appendix C.2; Tancik et al. 2020):
    frequencies from N(0, 16^2). Song et al. 2021b show the network log sigma, which their geometric
    noise levels make linear in time; so t / 1000 is shown here, which is defined at t = 0 too.
    At this scale one timestep in a thousand turns a typical angle by 0.1, and all of them by 100.

    The frequencies are a buffer: they lie in the model file, and no optimizer or average moves
    them. `weight` has as many entries as the network's width, and the result twice as many.
    """

    SCALE = 16.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        count = config.time_channels // 4
        self.width, self.cos_first = 2 * count, config.flip_sin_to_cos
        self.weight: Tensor
        self.register_buffer("weight", self.SCALE * torch.randn(count))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, 2 * width of the network)."""
        angles = t.float()[:, None] / 1000 * self.weight * (2 * math.pi)
        return waves(angles, cos_first=self.cos_first)


TIME_EMBEDDINGS: Registry[Callable[[Config], Any]] = Registry(
    "time_embeddings", {"sinusoidal": Sinusoids, "fourier": Fourier}
)
"""What is computed of t before the two linear layers, by the name of `Config.time_embedding`."""


def sinusoids(t: Tensor, width: int, *, shift: int = 0, cos_first: bool = True) -> Tensor:
    """cos and sin of t at geometric frequencies from 1 to about 1e-4 (Vaswani et al. 2017, 3.5).

    Args:
        t: (B,), real numbers.
        width: size of the result's second dimension.
        shift: with 1 the last frequency is 1e-4 itself, with 0 the one after the last would be.
        cos_first: the order of the halves.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10_000) * index / max(1, half - shift))
    return F.pad(waves(t.float()[:, None] * frequencies, cos_first), (0, width - 2 * half))


def waves(angles: Tensor, cos_first: bool) -> Tensor:
    """(B, n) to (B, 2n): cos and sin."""
    halves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(halves, dim=1)
