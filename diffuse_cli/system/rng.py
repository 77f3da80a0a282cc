"""Random numbers.

No generator state is saved. A draw is keyed by (seed, purpose, indices), so it does not depend on
earlier draws or the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 8
"""Number of positions of the global batch that share a generator."""


def key(seed: int, purpose: str, *index: int) -> int:
    """Return 128 bits that depend on every argument."""
    text = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def philox(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return NumPy's counter-based generator with `key`."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *index)))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the order of n samples in an epoch."""
    return philox(seed, "order", epoch).permutation(n)


def draw_noise(seed: int, purpose: str, *index: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise, float32, on the CPU."""
    values = philox(seed, purpose, *index).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values)


def image_noise(
    seed: int, indices: Sequence[int], draw: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """Return the noise of step `draw` of each image, (B, *shape). Step -1 is the initial noise."""
    noise = torch.stack([draw_noise(seed, "image", i, draw, shape=shape) for i in indices])
    return noise.to(device)


class Draws(NamedTuple):
    """Random numbers of some positions of a step.

    Attributes:
        u: numbers in [0, 1) that decide the timesteps, (B,).
        noise: noise to add to the samples, (B, *shape).
        flip: whether to mirror each sample, (B,).
        drop: numbers in [0, 1) that decide whether conditions are dropped, (B,).
    """

    u: Tensor
    noise: Tensor
    flip: Tensor
    drop: Tensor


def training_draws(
    seed: int,
    step: int,
    positions: range,
    *,
    shape: Sequence[int],
    device: torch.device,
    purpose: str = "training",
) -> Draws:
    """Return the draws of some positions of the global batch, with a generator for each block of 8.

    They do not depend on the number of processes or the accumulation.
    """

    def draw(**options: Any) -> tuple[Tensor, ...]:
        u, flip, drop = torch.rand((3, BLOCK), **options)
        noise = torch.randn((BLOCK, *shape), **options)
        return u, noise, flip < 0.5, drop

    return Draws(*draw_blocks(seed, step, positions, device, purpose, draw))


class GivenDraws(NamedTuple):
    """Random numbers of a model's conditioning inputs at some positions.

    Attributes:
        u: numbers in [0, 1) for a random degradation, (B, uniforms).
        level: the noise level of each input, in [0, 1), as a fraction of the largest, (B,).
        noise: noise of the degraded samples, (B, *observed).
        more: noise of the network's input, (B, *shape).
    """

    u: Tensor
    level: Tensor
    noise: Tensor
    more: Tensor


def augmentation_draws(seed: int, step: int, positions: range, count: int) -> Tensor:
    """Return numbers in [0, 1) that decide augmentations, (B, count) on the CPU.

    They do not depend on the number of processes or the accumulation, nor on the device.
    """

    def draw(**options: Any) -> tuple[Tensor, ...]:
        return (torch.rand((BLOCK, count), **options),)

    return draw_blocks(seed, step, positions, torch.device("cpu"), "augment", draw)[0]


def draw_blocks(
    seed: int,
    step: int,
    positions: range,
    device: torch.device,
    purpose: str,
    draw: Callable[..., tuple[Tensor, ...]],
) -> list[Tensor]:
    """Return the draws of some positions. `draw` draws those of a block."""
    first, last = positions.start // BLOCK, (positions.stop - 1) // BLOCK
    blocks = []
    for block in range(first, last + 1):
        positive = key(seed, purpose, step, block) & 0x7FFF_FFFF_FFFF_FFFF
        generator = torch.Generator(device).manual_seed(positive)
        blocks.append(draw(generator=generator, device=device))
    part = slice(positions.start - first * BLOCK, positions.stop - first * BLOCK)
    return [torch.cat(values)[part] for values in zip(*blocks, strict=True)]


def seed_modules(seed: int, step: int, microbatch: int, process: int) -> None:
    """Seed the random numbers that modules draw themselves, for example for dropout."""
    # `torch.manual_seed` records a stack trace for each kind of device that is missing.
    has_accelerator = torch.accelerator.is_available()
    seed_all = torch.manual_seed if has_accelerator else torch.default_generator.manual_seed
    seed_all(key(seed, "modules", step, microbatch, process) & 0xFFFF_FFFF)


def split_range(n: int, parts: int, index: int) -> range:
    """Return the `index`-th of `parts` contiguous parts of 0 ... n-1, as equal as possible."""
    return range(n * index // parts, n * (index + 1) // parts)
