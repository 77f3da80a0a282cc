"""Choice of the feature network for samples, and a network with random weights.

Convolutions with random weights can distinguish distributions that are far from photographs (Naeem
et al. 2020). They respond to means, textures and shapes, but not by the criteria of people. The
weights come from a fixed key, so they do not depend on the version of PyTorch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from diffuse_cli.core import Space
from diffuse_cli.media import MEDIA, can_judge
from diffuse_cli.metrics import Words
from diffuse_cli.metrics.features import RANDOM, FeatureNetwork, use_float32
from diffuse_cli.system.rng import philox

if TYPE_CHECKING:
    from diffuse_cli.media import Array
    from diffuse_cli.system import Work


WIDTHS = (32, 64, 128, 128)
"""Channels after each convolution of stride 2. Small samples have fewer convolutions."""

KERNEL = 3

LARGEST = 1e3
"""Largest distance from the mean in standard deviations. Values beyond it are clamped."""

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def build_random_network(space: Space, real: Array, device: torch.device) -> FeatureNetwork:
    """Build a network from stored samples (N, C, *size) of a space to float32 features.

    Features are the means and root mean squares over space of every channel after each layer.

    Args:
        real: the samples whose mean and standard deviation, in the model's numbers, standardize
            each channel.
    """
    wide = [width for k, width in enumerate(WIDTHS) if k == 0 or max(space.size) > 2**k]
    kernel = [KERNEL] * space.dims
    sizes = [(after, before, *kernel) for before, after in pairwise([space.channels, *wide])]
    kernels = [
        philox(0, "random-features", k, *size).standard_normal(size, dtype=np.float32)
        * np.float32(math.sqrt(2 / math.prod(size[1:])))
        for k, size in enumerate(sizes)
    ]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in kernels)).hexdigest()
    weights = [torch.from_numpy(array).to(device) for array in kernels]
    total, squares, count = np.zeros(space.channels), np.zeros(space.channels), 0
    for start in range(0, len(real), 64):
        part = torch.from_numpy(np.ascontiguousarray(real[start : start + 64]))
        samples = np.nan_to_num(space.to_model(part).double().numpy())
        samples = samples.reshape(len(samples), space.channels, -1)
        total += samples.sum((0, 2))
        squares += np.square(samples).sum((0, 2))
        count += len(samples) * samples.shape[2]
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    shape = (-1, *[1] * space.dims)
    middle, spread = (
        torch.tensor(values, dtype=torch.float32, device=device).reshape(shape)
        for values in (mean, np.where(std > 0, std, 1))
    )
    convolve = CONVOLUTIONS[space.dims]

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = torch.nan_to_num((space.to_model(x) - middle) / spread).clamp(-LARGEST, LARGEST)
        features = []
        with use_float32():
            for weight in weights:
                x = F.relu(convolve(x, weight, stride=2, padding=KERNEL // 2))
                flat = x.flatten(2)
                features += [flat.mean(2), flat.square().mean(2).sqrt()]
        return torch.cat(features, 1)

    dim = 2 * sum(size[0] for size in sizes)
    return FeatureNetwork(RANDOM, dim, digest, device, forward, pictures=False)


# The choice of a network for samples of a space.
#
# Networks that were trained on photographs work for images, but not for arrays and sounds. For
# these, a network with random weights is used, whose distances have another name
# (`FeatureNetwork.kid`).


@dataclass(frozen=True)
class FeatureChoice:
    """Choice of the network for samples.

    Attributes:
        trained: the network for images, or None if it is not needed.
        device: the device of the network.
    """

    trained: FeatureNetwork | None
    device: torch.device

    def choose_network(self, space: Space, real: Array) -> FeatureNetwork:
        """Return the network for samples of a space.

        Args:
            real: stored real samples (N, C, *size), to standardize the input of random features.
        """
        if self.trained is not None and can_judge(space):
            return self.trained

        return build_random_network(space, real, self.device)


def load_choice(
    space: Space | None, device: torch.device, trained: Work[FeatureNetwork]
) -> Work[FeatureChoice]:
    """Load the network for samples of a space in advance, if it may be needed.

    Args:
        space: the space, or None if it is not known yet.
        trained: the work that loads the network for images.
    """
    needed = space is None or can_judge(space)
    return FeatureChoice((yield from trained) if needed else None, device)


# Words for samples of a space and for networks.


def words_of(space: Space) -> Words:
    """Return the words for samples of a space."""
    kind = MEDIA[space.medium]
    named = space.layout not in kind.alike
    channels = tuple(kind.channel_names.get(space.channels, ())) if named else ()
    return Words(kind.many, kind.points, *kind.low_high, channels, kind.one)


def describe_network(features: Mapping[str, str]) -> str:
    """Return words for a feature network, from `FeatureNetwork.describe`."""
    name = features.get("name", "")
    return "random features" if name == RANDOM else f"features of {name}"


def describe_part(part: str, words: Words) -> str:
    """Return words for the measured part of the real samples, `held-out` or `all`."""
    return {"held-out": f"held-out {words.many}", "all": f"all {words.many} of DATA"}[part]
