"""The training loss of a configuration, and its value on images under fixed draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.kernels import laid_out
from diffuse_cli.core.losses import LOSSES, weights
from diffuse_cli.system.errors import lookup
from diffuse_cli.system.rng import training_draws
from diffuse_cli.training.config_layers import default_loss

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.models.image_conditioning import Inputs

    Array = npt.NDArray[Any]
    Labels = npt.NDArray[np.int64]


class Objective:
    """The loss of a configuration, weighted by timestep of a denoiser's process.

    Args:
        teacher: of a loss that follows one, or None.

    Attributes:
        weight: of each timestep's loss, (T,) on the CPU in float64; None for 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        denoiser: Denoiser,
        device: torch.device,
        teacher: Denoise | None = None,
    ) -> None:
        name = config.loss or default_loss(config.variance)
        self._loss = lookup(LOSSES, name, "--loss")
        self._more: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
        self.weight = weights(config.weighting or "none", denoiser)
        self._weights = None if self.weight is None else self.weight.float().to(device)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of each image, (B,)."""
        weight = None if self._weights is None else self._weights[t]
        return self._loss(denoiser, x0, t, noise, weight, **self._more, **cond)


def losses_of(
    objective: Objective,
    denoiser: Denoiser,
    blueprint: Blueprint,
    samples: Array,
    labels: Labels,
    *,
    given: Inputs | None = None,
    rows: Array | None = None,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The loss of each image, a batch at a time.

    Image k always gets the same timestep and noise, so the losses of two networks can be compared.

    Args:
        samples: as stored, (N, C, *size).
        labels: (N,), -1 for none.
        given: what each is given, for a model that is given anything.
        rows: the codes of its columns, for a model that is told a table.
    """
    for start in range(0, len(samples), batch_size):
        here = range(start, min(start + batch_size, len(samples)))
        shape = samples.shape[1:]
        draws = training_draws(seed, 0, here, shape=shape, device=device, purpose="held-out")
        t = (draws.u * denoiser.process.num_timesteps).long()
        own, classes = (
            torch.tensor(values[here.start : here.stop], device=device)
            for values in (samples, labels)
        )
        x0 = laid_out(blueprint.space.to_model(own))
        told, row = given.at(here, device) if given else None, None
        if rows is not None:
            row = torch.tensor(rows[here.start : here.stop], device=device)
        cond = blueprint.conditions.told(classes, told, row)
        with torch.no_grad():
            yield objective(denoiser, x0, t, draws.noise, cond)
