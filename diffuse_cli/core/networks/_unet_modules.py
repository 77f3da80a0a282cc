"""The `nn.Module` of `unet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core.errors import lookup
from diffuse_cli.core.networks import Run, plainly
from diffuse_cli.core.networks._blocks import Attention, Parts, doubled, halved
from diffuse_cli.core.networks._patches import folded, unfolded
from diffuse_cli.core.networks._start import zeroed
from diffuse_cli.core.networks._time import TIME_EMBEDDINGS
from diffuse_cli.core.networks.layers import Told
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from diffuse_cli.core.conditions import Conditions
    from diffuse_cli.core.networks.unet import Config


class UNet(Told):
    """The U-Net.

    Attributes:
        run_block: how blocks are run: `plainly`, or `checkpointed` to save memory.
        ends: the modules between features and what is not: images, times, classes, columns.
    """

    ends = (
        "conv_in", "conv_out", "time_embedding", "time_emb_proj", "class_embedding",
        "row_embedding",
    )  # fmt: skip

    def __init__(
        self, config: Config, space: Space, conditions: Conditions, out_channels: int
    ) -> None:
        super().__init__(conditions)
        self.patch = config.patch
        self.run_block: Run = plainly
        parts, upward = (Parts(c, space.dims) for c in (config, config.upward))
        width, time_width = config.width, config.time_channels
        widths, attends = config.widths, config.attends(space.size)
        folded = config.patch**space.dims
        self.conv_in = parts.conv((space.channels + self.given_channels) * folded, width)
        self.time_proj = lookup(TIME_EMBEDDINGS, config.time_embedding, "time_embedding")(config)
        self._embed(conditions, self.time_proj.width, time_width)

        self.down_blocks = nn.ModuleList()
        skips, before = [width], width
        for i, (after, attend) in enumerate(zip(widths, attends, strict=True)):
            last = i == len(widths) - 1
            inputs = [before] + [after] * (config.blocks - 1)
            self.down_blocks.append(Level(parts, inputs, after, attend, down=not last))
            skips += [after] * (config.blocks + (not last))
            before = after
        self.mid_block = Middle(parts, before)
        self.up_blocks = nn.ModuleList()
        for i, (after, attend) in enumerate(zip(widths[::-1], attends[::-1], strict=True)):
            last = i == len(widths) - 1
            inputs = [w + skips.pop() for w in [before] + [after] * config.blocks]
            self.up_blocks.append(Level(upward, inputs, after, attend, up=not last))
            before = after
        self.conv_norm_out = parts.norm(before)
        self.conv_out = zeroed(parts.conv(before, out_channels * folded))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        given: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """(B, C, *size) at times t (B,) in 0 ... 1000 to (B, out_channels, *size).

        `label` is (B,) int64 for a network with classes; K, or None, is "no class". `given` is
        (B, C', *size) for one that is told an array, as `Given` encodes it; None is zeros. `row` is
        (B, columns) for one that is told a table, in codes; NaN, or None, is not told.
        """
        emb = F.silu(self.embedded(self.time_proj(t), label, row))
        h = self.conv_in(folded(self.beside(x, given), self.patch))
        skips = [h]
        for level in self.down_blocks:
            h, states = level(h, emb, self.run_block)
            skips += states
        h = self.mid_block(h, emb, self.run_block)
        for level in self.up_blocks:
            h, _ = level(h, emb, self.run_block, skips)
        y: Tensor = self.run_block(self._read_out, h)
        return unfolded(y, self.patch)

    def _read_out(self, h: Tensor) -> Tensor:
        return self.conv_out(self.conv_norm_out(h, silu=True))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up, and the change of size after them."""

    def __init__(
        self,
        parts: Parts,
        inputs: list[int],
        width: int,
        attend: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(parts.residual(w, width) for w in inputs)
        if attend:
            self.attentions = nn.ModuleList(Attention(parts, width) for _ in inputs)
        if down:
            self.downsamplers = nn.ModuleList([parts.resized(width, halved)])
        if up:
            self.upsamplers = nn.ModuleList([parts.resized(width, doubled)])
        self.attend, self.down, self.up = attend, down, up

    def forward(
        self, h: Tensor, emb: Tensor, run: Run = plainly, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output and all states; pops `skips` from their end."""
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

    def __init__(self, parts: Parts, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(parts.residual(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(parts, width)])

    def forward(self, h: Tensor, emb: Tensor, run: Run = plainly) -> Tensor:
        """Shape-preserving."""
        h = run(self.attentions[0], run(self.resnets[0], h, emb))
        return run(self.resnets[1], h, emb)
