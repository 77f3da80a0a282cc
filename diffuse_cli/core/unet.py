"""The U-Net: the topology of ADM (Dhariwal & Nichol 2021), with the tensor names of diffusers.

Images go down through levels of residual blocks, each level half the size of the one before,
through the middle, and up again; every block on the way up also reads what the matching block on
the way down wrote. The time enters each residual block, and self-attention joins the blocks of
the chosen resolutions. Module names are those of diffusers' `UNet2DModel`, so that weights go both
ways without a table of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffuse_cli.config import UNetConfig
from diffuse_cli.core.blocks import (
    Attention,
    change_of_size,
    conv,
    doubled,
    halved,
    norm,
    residual_block,
    zeroed,
)
from diffuse_cli.core.blocks import count_parameters as count_parameters
from diffuse_cli.errors import lookup

Run = Callable[..., Tensor]


def plainly(block: Run, *inputs: object) -> Tensor:
    """Run a block of a network, and keep what its gradient needs."""
    return block(*inputs)


def checkpointed(block: Run, *inputs: object) -> Tensor:
    """Run a block of a network, keep its inputs alone, and run it again for its gradient.

    Chen et al. 2016. Dropout drops the same the second time, so that the gradient is the same.
    """
    h: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)
    return h


class UNet(nn.Module):
    """A network for images of shape (B, channels, H, W) and timesteps of shape (B,).

    Args:
        config: its shape.

    Attributes:
        run_block: how its blocks are run: `plainly`, or `checkpointed` to save memory.

    Raises:
        UsageError: no such block or time embedding.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.run_block: Run = plainly
        width, time_width = config.width, config.time_channels
        widths, attends = config.widths, config.attends
        self.conv_in = conv(config.channels * config.patch**2, width)
        time_proj = lookup(TIME_EMBEDDINGS, config.time_embedding, "[unet] time_embedding")
        self.time_proj = time_proj(config)
        self.time_embedding = TimeEmbedding(self.time_proj.width, time_width)
        if config.num_classes:
            # As nn.Embedding draws it, which on the meta device imports a compiler for that.
            drawn = torch.randn(config.num_classes + 1, time_width)
            self.class_embedding = nn.Embedding.from_pretrained(drawn, freeze=False)

        self.down_blocks = nn.ModuleList()
        skips, before = [width], width
        for i, (after, attend) in enumerate(zip(widths, attends, strict=True)):
            last = i == len(widths) - 1
            inputs = [before] + [after] * (config.blocks - 1)
            self.down_blocks.append(Level(config, inputs, after, attend, down=not last))
            skips += [after] * (config.blocks + (not last))
            before = after
        self.mid_block = Middle(config, before)
        self.up_blocks = nn.ModuleList()
        for i, (after, attend) in enumerate(zip(widths[::-1], attends[::-1], strict=True)):
            last = i == len(widths) - 1
            inputs = [w + skips.pop() for w in [before] + [after] * config.blocks]
            self.up_blocks.append(Level(config.upward, inputs, after, attend, up=not last))
            before = after
        self.conv_norm_out = norm(config, before)
        out_channels = config.out_channels or config.channels
        self.conv_out = zeroed(conv(before, out_channels * config.patch**2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction for `x` at the timesteps `t`.

        Args:
            x: (B, channels, H, W).
            t: (B,), real numbers on the scale 0 ... 1000.
            label: (B,) int64 for a conditional network; K, or None, is "no class".

        Returns:
            (B, out_channels, H, W).
        """
        emb = self.time_embedding(self.time_proj(t))
        if self.config.num_classes:
            if label is None:
                label = torch.full_like(t, self.config.num_classes, dtype=torch.long)
            emb = emb + self.class_embedding(label)
        emb = F.silu(emb)
        h = self.conv_in(self._cut(x))
        skips = [h]
        for level in self.down_blocks:
            h, states = level(h, emb, self.run_block)
            skips += states
        h = self.mid_block(h, emb, self.run_block)
        for level in self.up_blocks:
            h, _ = level(h, emb, self.run_block, skips)
        return self._join(self.run_block(self._read_out, h))

    def _cut(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C p^2, H / p, W / p): the pixels of a patch are channels."""
        patch = self.config.patch
        return F.pixel_unshuffle(x, patch) if patch > 1 else x

    def _join(self, x: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        patch = self.config.patch
        return F.pixel_shuffle(x, patch) if patch > 1 else x

    def _read_out(self, h: Tensor) -> Tensor:
        return self.conv_out(self.conv_norm_out(h, silu=True))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up, and the change of size after them."""

    def __init__(
        self,
        config: UNetConfig,
        inputs: list[int],
        width: int,
        attend: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(residual_block(config, w, width) for w in inputs)
        if attend:
            self.attentions = nn.ModuleList(Attention(config, width) for _ in inputs)
        if down:
            self.downsamplers = nn.ModuleList([change_of_size(config, width, halved)])
        if up:
            self.upsamplers = nn.ModuleList([change_of_size(config, width, doubled)])
        self.attend, self.down, self.up = attend, down, up

    def forward(
        self, h: Tensor, emb: Tensor, run: Run = plainly, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output, and every state on the way; `skips` are taken from their end."""
        states = []
        for i in range(len(self.resnets)):
            h = run(self._block, i, h, emb, skips.pop() if skips is not None else None)
            states.append(h)
        if self.down:
            h = run(self.downsamplers[0], h, emb)
            states.append(h)
        if self.up:
            h = run(self.upsamplers[0], h, emb)
        return h, states

    def _block(self, i: int, h: Tensor, emb: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            h = torch.cat([h, skip], dim=1)
        h = self.resnets[i](h, emb)
        return self.attentions[i](h) if self.attend else h


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(residual_block(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(config, width)])

    def forward(self, h: Tensor, emb: Tensor, run: Run = plainly) -> Tensor:
        """Shape-preserving."""
        h = run(self.attentions[0], run(self.resnets[0], h, emb))
        return run(self.resnets[1], h, emb)


# -- time -----------------------------------------------------------------------------------------


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

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.width = config.time_channels // 4
        self.shift, self.cos_first = config.freq_shift, config.flip_sin_to_cos

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        return sinusoids(t, self.width, shift=self.shift, cos_first=self.cos_first)


class Fourier(nn.Module):
    """cos and sin of t at random frequencies that stay as they are; `width` numbers.

    The Gaussian Fourier features of NCSN++ (Song et al. 2021, appendix C.2; Tancik et al. 2020):
    frequencies from N(0, 16^2). Song et al. show the network log sigma, which their geometric
    noise levels make linear in time; so t / 1000 is shown here, which is defined at t = 0 too.
    At this scale one timestep in a thousand turns a typical angle by 0.1, and all of them by 100.

    The frequencies are a buffer: they lie in the model file, and no optimizer or average moves
    them. `weight` has as many entries as the network's width, and the result twice as many.
    """

    SCALE = 16.0

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        count = config.time_channels // 4
        self.width, self.cos_first = 2 * count, config.flip_sin_to_cos
        self.weight: Tensor
        self.register_buffer("weight", self.SCALE * torch.randn(count))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, 2 * width of the network)."""
        angles = t.float()[:, None] / 1000 * self.weight * (2 * math.pi)
        return waves(angles, cos_first=self.cos_first)


TIME_EMBEDDINGS: dict[str, Callable[[UNetConfig], Sinusoids | Fourier]] = {
    "sinusoidal": Sinusoids,
    "fourier": Fourier,
}
"""What is computed of t before the two linear layers, by the name of `UNetConfig.time_embedding`.
"""


def sinusoids(t: Tensor, width: int, *, shift: int = 0, cos_first: bool = True) -> Tensor:
    """cos and sin of t at geometric frequencies from 1 to 1e-4 (Vaswani et al. 2017, 3.5).

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
