"""Functions that wrap a `Denoise` and give a `Denoise`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from diffuse_cli.core.denoiser import Denoise, Prediction
from diffuse_cli.core.process import Process


def clip(denoise: Denoise, process: Process) -> Denoise:
    """Clamp x_0 to [-1, 1], and derive eps from it again: eps = (x_t - alpha x_0) / sigma."""

    def clipped(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        x0 = prediction.x0.clamp(-1, 1)
        alpha, sigma = process.level(t, like=x_t)
        return replace(prediction, x0=x0, eps=(x_t - alpha * x0) / sigma)

    return clipped


def guide(denoise: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 1 is the conditional model, 0 the unconditional one; between and beyond, x_0 and eps are
    extrapolated linearly. The variance is the conditional model's.
    """

    def guided(x_t: Tensor, t: Any, /, label: Any = None, **cond: Any) -> Prediction:
        given = denoise(x_t, t, label=label, **cond)
        if scale == 1:
            return given
        free = denoise(x_t, t, label=None, **cond)
        return replace(
            given,
            x0=free.x0 + scale * (given.x0 - free.x0),
            eps=free.eps + scale * (given.eps - free.eps),
            raw=None,
        )

    return guided
