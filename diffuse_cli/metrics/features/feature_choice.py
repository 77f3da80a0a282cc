"""Choice of the feature network for samples, and a network with random weights.

Convolutions with random weights can distinguish distributions that are far from photographs (Naeem
et al. 2020). They respond to means, textures and shapes, but not by the criteria of people. The
weights come from a fixed key, so they do not depend on the version of PyTorch.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from diffuse_cli.config.eval_options import FeatureConfig, MeasureConfig
from diffuse_cli.config.options import find_changed_flag
from diffuse_cli.core import Space
from diffuse_cli.media import Array, can_judge
from diffuse_cli.metrics import Words, features
from diffuse_cli.metrics.features import FeatureNetwork
from diffuse_cli.system import DiffuseError, Notice, UsageError, Work
from diffuse_cli.system.rng import philox
from diffuse_cli.system.team import Team

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
        statistics = []
        with features.use_float32():
            for weight in weights:
                x = F.relu(convolve(x, weight, stride=2, padding=KERNEL // 2))
                flat = x.flatten(2)
                statistics += [flat.mean(2), flat.square().mean(2).sqrt()]
        return torch.cat(statistics, 1)

    dim = 2 * sum(size[0] for size in sizes)
    return FeatureNetwork(features.RANDOM, dim, digest, device, forward, pictures=False)


# The choice of a network for samples of a space.
#
# Networks that were trained on photographs work for images, but not for arrays and sounds. For
# these, a network with random weights is used, whose distances have another name
# (`FeatureNetwork.kid`).


def load_trained_network(
    config: MeasureConfig, space: Space | None, accelerator: Accelerator, *, alone: bool = False
) -> Work[FeatureNetwork | None]:
    """Load the network for images before the work starts, as its weights may be missing or wrong.

    Returns None if samples of the space need no such network.

    Args:
        space: the space of the samples, or None if it is not known yet.
        alone: whether only the first process calls it.
    """
    if space is not None and not can_judge(space):
        return None
    name, device = config.features, accelerator.device
    if not alone and config.feature_weights is None:
        failed = None
        if accelerator.is_local_main_process:  # downloads; the others wait
            try:
                yield from features.find_weights(name)
            except DiffuseError as error:
                failed = error
        for reason in filter(None, Team.from_accelerator(accelerator).gather(failed)):
            raise reason
    file = config.feature_weights
    path = Path(file) if file is not None else (yield from features.find_weights(name))
    return features.load_network(name, device, path)


def choose_network(
    config: MeasureConfig,
    trained: FeatureNetwork | None,
    space: Space,
    real: Array,
    device: torch.device,
) -> Work[FeatureNetwork]:
    """Choose the network for samples of a space, and report if its features are random.

    Args:
        trained: the result of `load_trained_network`.
        real: stored real samples (N, C, *size), to standardize the input of random features.

    Raises:
        UsageError: the user asked for a network trained on photographs.
    """
    if trained is not None and can_judge(space):
        return trained
    many = Words.of(space).many
    if flag := find_changed_flag(config, FeatureConfig):
        text = f"{flag} uses features of photographs, which do not suit {many}"
        hint = "Remove it: the KID then uses random features"
        raise UsageError(text, hint, code="option_unsuited")
    yield Notice(
        f"KID uses random features, because features of photographs do not suit {many}. Other "
        "metrics of such features are left out"
    )
    return build_random_network(space, real, device)
