"""Time embeddings."""

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
    """Two linear layers over `TIME_EMBEDDINGS`."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B, time_width)."""
        return self.linear_2(F.silu(self.linear_1(x)))  # type: ignore[no-any-return]


class Sinusoids(nn.Module):
    """`sinusoids` as configured; `width` numbers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.time_channels // 4
        self.shift, self.cos_first = config.freq_shift, config.flip_sin_to_cos

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        return sinusoids(t, self.width, shift=self.shift, cos_first=self.cos_first)


class Fourier(nn.Module):
    """cos and sin of t at fixed random frequencies; `width` numbers.

    The Gaussian Fourier features of NCSN++ (Song et al. 2021b, appendix C.2; Tancik et al. 2020),
    with frequencies from N(0, 16^2). Song et al. 2021b pass log sigma, which is linear in time for
    their geometric noise levels; t / 1000 is also defined at t = 0. One timestep of 1000 turns a
    typical angle by 0.1.

    The frequencies are a buffer: saved with the model, not trained or averaged.
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
"""Features of t before the two linear layers, by `Config.time_embedding`."""


def sinusoids(t: Tensor, width: int, *, shift: int = 0, cos_first: bool = True) -> Tensor:
    """cos and sin of t at geometric frequencies from 1 to about 1e-4 (Vaswani et al. 2017, 3.5).

    Args:
        t: (B,), real numbers.
        width: of the result (B, width).
        shift: 1 makes the last frequency 1e-4; with 0 that would be the next one.
        cos_first: cos before sin.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10_000) * index / max(1, half - shift))
    return F.pad(waves(t.float()[:, None] * frequencies, cos_first), (0, width - 2 * half))


def waves(angles: Tensor, cos_first: bool) -> Tensor:
    """(B, n) to (B, 2n): cos and sin."""
    halves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(halves, dim=1)
