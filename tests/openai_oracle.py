"""OpenAI's network as a plain function of its state dict, and state dicts to ask it of.

Written from the published layout: blocks on the way down in one list, those on the way up in
another, each a list of parts; rows of `qkv` by heads and then queries, keys and values (`legacy`),
or the other way round (`new`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
GROUPS = 32


def checkpoint(
    *,
    width: int = 32,
    multipliers: tuple[int, ...] = (1, 2),
    blocks: int = 1,
    attends: tuple[bool, ...] = (False, True),
    channels: int = 3,
    out_channels: int = 6,
    classes: int = 0,
    scale_shift: bool = True,
    updown: bool = False,
    time_width: int | None = None,
    filled: bool = True,
) -> State:
    """A state dict of random numbers that are nowhere zero; of no memory where not `filled`.

    `width` is that of the first convolution, `time_width` the code's model_channels.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    waves = time_width or width
    time = 4 * waves

    def layer(name: str, *shape: int) -> None:
        shapes[name + ".weight"] = shape
        shapes[name + ".bias"] = shape[:1]

    def residual(name: str, before: int, after: int) -> None:
        layer(name + ".in_layers.0", before)
        layer(name + ".in_layers.2", after, before, 3, 3)
        layer(name + ".emb_layers.1", after * (2 if scale_shift else 1), time)
        layer(name + ".out_layers.0", after)
        layer(name + ".out_layers.3", after, after, 3, 3)
        if before != after:
            layer(name + ".skip_connection", after, before, 1, 1)

    def attention(name: str, size: int) -> None:
        layer(name + ".norm", size)
        layer(name + ".qkv", 3 * size, size, 1)
        layer(name + ".proj_out", size, size, 1)

    layer("time_embed.0", time, waves)
    layer("time_embed.2", time, time)
    if classes:
        shapes["label_emb.weight"] = (classes, time)
    layer("input_blocks.0.0", width, channels, 3, 3)
    skips, now, n = [width], width, 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            residual(f"input_blocks.{n}.0", now, width * multiplier)
            now = width * multiplier
            if attends[level]:
                attention(f"input_blocks.{n}.1", now)
            skips.append(now)
            n += 1
        if level < len(multipliers) - 1:
            if updown:
                residual(f"input_blocks.{n}.0", now, now)
            else:
                layer(f"input_blocks.{n}.0.op", now, now, 3, 3)
            skips.append(now)
            n += 1
    residual("middle_block.0", now, now)
    attention("middle_block.1", now)
    residual("middle_block.2", now, now)
    n = 0
    for level in reversed(range(len(multipliers))):
        for j in range(blocks + 1):
            residual(f"output_blocks.{n}.0", now + skips.pop(), width * multipliers[level])
            now, part = width * multipliers[level], 1
            if attends[level]:
                attention(f"output_blocks.{n}.1", now)
                part = 2
            if level and j == blocks:
                if updown:
                    residual(f"output_blocks.{n}.{part}", now, now)
                else:
                    layer(f"output_blocks.{n}.{part}.conv", now, now, 3, 3)
            n += 1
    layer("out.0", now)
    layer("out.2", out_channels, now, 3, 3)
    return _filled(shapes) if filled else {n: torch.ones(1).expand(s) for n, s in shapes.items()}


def _filled(shapes: dict[str, tuple[int, ...]]) -> State:
    draw = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 10
        state[name] = torch.randn(shape, generator=draw) * fan**-0.5
        if len(shape) == 1 and name.endswith("weight"):
            state[name] += 1
    return state


def answer(
    state: State,
    x: Tensor,
    t: Tensor,
    label: Tensor | None,
    heads: Any,
    order: str = "legacy",
    heads_up: Any = None,
) -> Tensor:
    """The network's output; `heads` gives their number at a width, `heads_up` on the way up."""

    def has(name: str) -> bool:
        return name + ".weight" in state

    def of(name: str) -> tuple[Tensor, Tensor]:
        return state[name + ".weight"], state[name + ".bias"]

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, GROUPS, *of(name), eps=1e-5)

    def residual(name: str, h: Tensor, resize: Any) -> Tensor:
        out = resize(F.silu(norm(name + ".in_layers.0", h)))
        out = F.conv2d(out, *of(name + ".in_layers.2"), padding=1)
        emb = F.linear(F.silu(time), *of(name + ".emb_layers.1"))[:, :, None, None]
        if emb.shape[1] == out.shape[1]:
            out = norm(name + ".out_layers.0", out + emb)
        else:
            scale, shift = emb.chunk(2, dim=1)
            out = norm(name + ".out_layers.0", out) * (1 + scale) + shift
        out = F.conv2d(F.silu(out), *of(name + ".out_layers.3"), padding=1)
        h = resize(h)
        if has(name + ".skip_connection"):
            h = F.conv2d(h, *of(name + ".skip_connection"))
        return h + out

    def attention(name: str, h: Tensor) -> Tensor:
        batch, size, *sides = h.shape
        up = heads_up and name.startswith("output_blocks")
        count = (heads_up if up else heads)(size)
        each = size // count
        rows = F.conv1d(norm(name + ".norm", h).flatten(2), *of(name + ".qkv"))
        mixed = []
        for head in range(count):
            if order == "legacy":
                start = [3 * each * head + each * part for part in range(3)]
            else:
                start = [size * part + each * head for part in range(3)]
            q, k, v = (rows[:, s : s + each] for s in start)
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(each), dim=-1)
            mixed.append(v @ weights.transpose(1, 2))
        out = F.conv1d(torch.cat(mixed, 1), *of(name + ".proj_out"))
        return h + out.reshape(batch, size, *sides)

    def block(name: str, h: Tensor, resize: Any) -> Tensor:
        """Its parts in turn; `resize` says of a residual block what it does to the size."""
        for part in (f"{name}.{i}" for i in range(3)):
            if has(part + ".in_layers.0"):
                h = residual(part, h, resize(part))
            elif has(part + ".qkv"):
                h = attention(part, h)
            elif has(part + ".op"):
                h = F.conv2d(h, *of(part + ".op"), stride=2, padding=1)
            elif has(part + ".conv"):
                h = F.conv2d(doubled(h), *of(part + ".conv"), padding=1)
        return h

    def same(h: Tensor) -> Tensor:
        return h

    ups = [k for k in state if k.startswith("output_blocks") and k.split(".")[2] != "0"
           and k.endswith(("in_layers.0.weight", ".conv.weight"))]  # fmt: skip
    outputs = len({k.split(".")[1] for k in state if k.startswith("output_blocks")})
    per_level = outputs // (len(ups) + 1)
    half = state["time_embed.0.weight"].shape[1] // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    time = F.linear(torch.cat([angles.cos(), angles.sin()], 1), *of("time_embed.0"))
    time = F.linear(F.silu(time), *of("time_embed.2"))
    if label is not None:
        time = time + state["label_emb.weight"][label]

    h = F.conv2d(x, *of("input_blocks.0.0"), padding=1)
    skips = [h]
    for n in range(1, outputs):
        resize = halved if n % per_level == 0 else same
        h = block(f"input_blocks.{n}", h, lambda _, resize=resize: resize)
        skips.append(h)
    h = block("middle_block", h, lambda _: same)
    for n in range(outputs):
        h = torch.cat([h, skips.pop()], 1)
        h = block(f"output_blocks.{n}", h, lambda part: same if part[-1] == "0" else doubled)
    return F.conv2d(F.silu(norm("out.0", h)), *of("out.2"), padding=1)


def halved(h: Tensor) -> Tensor:
    """Means of 2x2 pixels."""
    return h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))


def doubled(h: Tensor) -> Tensor:
    """Each pixel four times."""
    return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
