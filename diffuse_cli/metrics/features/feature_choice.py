"""A network with random weights, for samples that no trained network has seen.

Convolutions of random weights tell distributions apart that are far from photographs (Naeem et al.
2020). They know nothing of what matters to people: they see means,
textures and shapes as such. The weights come from a fixed key, and so do not depend on the
version of PyTorch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from diffuse_cli.metrics.features import RANDOM, FeatureNetwork, exact
from diffuse_cli.system.rng import philox

if TYPE_CHECKING:
    from diffuse_cli.core.space import Space
    from diffuse_cli.media import Array

WIDTHS = (32, 64, 128, 128)
"""Channels after each convolution of stride 2; samples of a few points have fewer of them."""

KERNEL = 3

LARGEST = 1e3
"""Deviations from the mean beyond which numbers are cut off."""

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def random_network(
    space: Space, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> FeatureNetwork:
    """A network for stored samples (N, C, *size) of a space -> float32 features.

    Features are the means and root mean squares over space of every channel after each layer.

    Args:
        mean, std: what numbers are standardised by, in the model's units, by channel.
    """
    sizes, width = [], space.channels
    for k, wider in enumerate(WIDTHS):
        if k and max(space.size) <= 2**k:
            break
        sizes.append((wider, width, *[KERNEL] * space.dims))
        width = wider
    drawn = [
        philox(0, "random-features", k, *size).standard_normal(size, dtype=np.float32)
        * np.float32(math.sqrt(2 / math.prod(size[1:])))
        for k, size in enumerate(sizes)
    ]
    digest = hashlib.sha256(b"".join(own.tobytes() for own in drawn)).hexdigest()
    weights = [torch.from_numpy(own).to(device) for own in drawn]
    shape = (-1, *[1] * space.dims)
    middle, spread = (
        torch.tensor(values, dtype=torch.float32, device=device).reshape(shape)
        for values in (mean, std)
    )
    convolve = CONVOLUTIONS[space.dims]

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = torch.nan_to_num((space.to_model(x) - middle) / spread).clamp(-LARGEST, LARGEST)
        found = []
        with exact():
            for weight in weights:
                x = F.relu(convolve(x, weight, stride=2, padding=KERNEL // 2))
                flat = x.flatten(2)
                found += [flat.mean(2), flat.square().mean(2).sqrt()]
        return torch.cat(found, 1)

    dim = 2 * sum(size[0] for size in sizes)
    return FeatureNetwork(RANDOM, dim, digest, device, forward, pictures=False)


def random_network_for(space: Space, real: Array, device: torch.device) -> FeatureNetwork:
    """A network that standardises by real samples (N, C, *size), as stored."""
    total, squares, count = np.zeros(space.channels), np.zeros(space.channels), 0
    for start in range(0, len(real), 64):
        part = torch.from_numpy(np.ascontiguousarray(real[start : start + 64]))
        seen = np.nan_to_num(space.to_model(part).double().numpy())
        seen = seen.reshape(len(seen), space.channels, -1)
        total += seen.sum((0, 2))
        squares += np.square(seen).sum((0, 2))
        count += len(seen) * seen.shape[2]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return random_network(space, mean.tolist(), np.where(std > 0, std, 1).tolist(), device)
