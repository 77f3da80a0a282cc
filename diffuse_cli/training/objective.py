"""What a configuration minimises, and its value on images that always meet the same draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffuse_cli import pictures
from diffuse_cli.config import TrainConfig
from diffuse_cli.core.losses import LOSSES, weights
from diffuse_cli.errors import lookup
from diffuse_cli.runtime import training_draws
from diffuse_cli.training.configuring import default_loss

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoiser

    Pixels = npt.NDArray[np.uint8]
    Labels = npt.NDArray[np.int64]


class Objective:
    """The loss of a configuration with its weight at each timestep of a denoiser's process."""

    def __init__(self, config: TrainConfig, denoiser: Denoiser, device: torch.device) -> None:
        self._loss = lookup(LOSSES, config.loss or default_loss(config.variance), "--loss")
        table = weights(config.weighting or "none", denoiser)
        self._weights = None if table is None else table.float().to(device)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of each image, (B,)."""
        weight = None if self._weights is None else self._weights[t]
        return self._loss(denoiser, x0, t, noise, weight, **cond)


def condition_on(labels: Labels, num_classes: int, device: torch.device) -> dict[str, Tensor]:
    """The labels of images where a model is conditional; K for an image without one."""
    if not num_classes:
        return {}
    return {"label": torch.from_numpy(np.where(labels < 0, num_classes, labels)).to(device)}


def losses_of(
    objective: Objective,
    denoiser: Denoiser,
    pixels: Pixels,
    labels: Labels,
    *,
    num_classes: int,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The loss of each image, a batch at a time: image k meets the same timestep and noise every
    time, whatever the batch size, so that two networks differ by their weights alone.

    Args:
        pixels: uint8 (N, C, H, W).
        labels: (N,), -1 where an image has none.
    """
    for start in range(0, len(pixels), batch_size):
        here = range(start, min(start + batch_size, len(pixels)))
        part = slice(here.start, here.stop)
        shape = pixels.shape[1:]
        draws = training_draws(seed, 0, here, shape=shape, device=device, purpose="held-out")
        t = (draws.u * denoiser.process.num_timesteps).long()
        x0 = pictures.from_uint8(pixels[part], device)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        cond = condition_on(labels[part], num_classes, device)
        with torch.no_grad():
            yield objective(denoiser, x0, t, draws.noise, cond)
