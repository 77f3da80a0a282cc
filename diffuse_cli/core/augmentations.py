"""Augmentation that hardly leaks into samples (Karras et al. 2022, appendix F.2).

Random changes of few training samples make a network learn what all of them have in common instead
of each by heart. The network receives the parameters of each change, and zeros mean no change. So
it learns from changed samples, and generates unchanged ones once it distinguishes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import Registry
from diffuse_cli.core.space import expand_batch, send

if TYPE_CHECKING:
    from torch import Tensor

CHANCE = 0.15
"""Probability of a change. Karras et al. 2022 use 0.12 to 0.15 (table 6)."""

DIMENSIONS = 3
"""Most spatial dimensions of a sample."""

FARTHEST = 1 / 8
"""Farthest shift, as a fraction of a side."""

ZOOM, CONTRAST, SATURATION, GAIN = 0.4, 0.25, 0.5, 1.0
"""Largest factors, as binary logarithms: 2^0.4 is 1.32."""

BRIGHTNESS = 0.2
"""Largest change of brightness, where samples are in [-1, 1]."""

Change = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]


@dataclass(frozen=True)
class Augmentation:
    """Random change of samples.

    Attributes:
        change: takes samples (B, C, *size) and uniform random numbers (B, draws) in [0, 1). It
            returns the changed samples, and the parameters (B, parameters) that the network
            receives.
        draws, parameters: the numbers of each.
        chance: the probability of the change.
        moves: whether values move to other positions, where paired samples follow them.
    """

    change: Change
    draws: int
    parameters: int
    chance: float = CHANCE
    moves: bool = True


def flip(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror the last axis."""
    return x.flip(-1), u.new_ones(len(u), 1)


def shift(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Shift by whole positions along each axis. The rest is filled by reflection."""
    import torch

    parameters = torch.zeros_like(u)
    for axis, side in enumerate(x.shape[2:]):
        max_shift = FARTHEST * side
        steps = ((2 * u[:, axis] - 1) * max_shift).round()
        parameters[:, axis] = steps / max_shift
        places = (torch.arange(side, device=x.device) - steps[:, None]).long().abs()
        places = side - 1 - (side - 1 - places).abs()
        view = [len(x), 1, *[1] * (x.ndim - 2)]
        view[2 + axis] = side
        x = x.gather(2 + axis, places.reshape(view).expand_as(x))
    return x, parameters


def zoom(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge or shrink images (B, C, H, W) around their center."""
    import torch

    parameters = 2 * u - 1
    factor = torch.exp2(-ZOOM * parameters[:, 0])
    return _resample(x, factor[:, None, None] * torch.eye(2, device=x.device)), parameters


def rotate(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate images (B, C, H, W) around their center, by any angle."""
    import torch

    angle = math.tau * (u[:, 0] - 0.5)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([cos, -sin, sin, cos], 1).unflatten(1, (2, 2))
    return _resample(x, matrix), torch.stack([cos - 1, sin], 1)


def color(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Change the saturation, contrast and brightness of images, but not their transparency."""
    import torch

    parameters = 2 * u - 1
    saturation, contrast, brightness = (expand_batch(part, x) for part in parameters.unbind(1))
    colors = x[:, : x.shape[1] - (x.shape[1] in (2, 4))]
    grey = colors.mean(1, keepdim=True)
    changed = grey + torch.exp2(SATURATION * saturation) * (colors - grey)
    changed = torch.exp2(CONTRAST * contrast) * changed + BRIGHTNESS * brightness
    return torch.cat([changed, x[:, colors.shape[1] :]], 1), parameters


def gain(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Make sounds louder or quieter."""
    import torch

    parameters = 2 * u - 1
    return torch.exp2(GAIN * expand_batch(parameters[:, 0], x)) * x, parameters


AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentations",
    {
        "flip": Augmentation(flip, 0, 1, chance=0.5),
        "zoom": Augmentation(zoom, 1, 1),
        "rotate": Augmentation(rotate, 1, 2),
        "shift": Augmentation(shift, DIMENSIONS, DIMENSIONS),
        "color": Augmentation(color, 3, 3, moves=False),
        "gain": Augmentation(gain, 1, 1, moves=False),
    },
)


def _resample(x: Tensor, matrix: Tensor) -> Tensor:
    """Return images (B, C, H, W) whose positions p from the center show x at `matrix` p (B, 2, 2).

    Positions outside of x show its reflection. Labels, which are integers, are of the nearest
    position.
    """
    import torch.nn.functional as F

    height, width = x.shape[2:]
    theta = F.pad(matrix, (0, 1))
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    mode = "bilinear" if x.device.type == "mps" else "bicubic"  # which Metal does not have
    mode = mode if x.is_floating_point() else "nearest"
    moved = F.grid_sample(x.float(), grid, mode, padding_mode="reflection", align_corners=False)
    return moved.to(x.dtype)


def count_draws(names: Sequence[str]) -> int:
    """Return the uniform random numbers per sample of augmentations."""
    return sum(1 + AUGMENTATIONS[name].draws for name in names)


def count_parameters(names: Sequence[str]) -> int:
    """Return the parameters of augmentations, which the network receives."""
    return sum(AUGMENTATIONS[name].parameters for name in names)


def augment(
    x: Tensor, names: Sequence[str], u: Tensor, *, paired: bool = False
) -> tuple[Tensor, Tensor]:
    """Change samples by augmentations, one after another.

    Args:
        x: samples (B, C, *size) in the model's space, or label maps as integers.
        u: uniform random numbers (B, count_draws(names)) on the CPU, which thus knows what changes.
        paired: whether x are paired samples, which only move.

    Returns:
        The changed samples, and the parameters (B, count_parameters(names)), 0 for no change.
    """
    import torch

    counts = (AUGMENTATIONS[name].parameters for name in names)
    parameter_groups = [x.new_zeros(len(x), count, dtype=u.dtype) for count in counts]
    for name, parameters in zip(names, parameter_groups, strict=True):
        entry = AUGMENTATIONS[name]
        numbers, u = u.tensor_split([1 + entry.draws], dim=1)
        chosen = torch.nonzero(numbers[:, 0] < entry.chance)[:, 0]
        if len(chosen) and (entry.moves or not paired):
            rows = send(chosen, x.device)
            changed, parameters[rows] = entry.change(x[rows], send(numbers[chosen, 1:], x.device))
            x = x.index_copy(0, rows, changed)
    return x, torch.cat(parameter_groups, 1)
