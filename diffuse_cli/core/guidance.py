"""Wrappers from `Denoise` to `Denoise`: clipping and classifier-free guidance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffuse_cli.core.denoiser import Denoise, Prediction
from diffuse_cli.core.process import Process, spread


def clip(denoise: Denoise, process: Process) -> Denoise:
    """Clamp x_0 to [-1, 1] and recompute eps = (x_t - alpha x_0) / sigma."""

    def clipped(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        return _with_x0(prediction, prediction.x0.clamp(-1, 1), process, x_t, t)

    return clipped


def threshold(denoise: Denoise, process: Process, percentile: float) -> Denoise:
    """Dynamic thresholding of x_0, with eps recomputed (Saharia et al. 2022, sec. 2.3).

    x_0 is clamped to [-s, s] and divided by s, the percentile of |x_0| over an image, at least 1.
    With s = 1 that is `clip`; an estimate that strong guidance saturates is scaled, not flattened.

    Args:
        percentile: in (0, 1]; interpolated between elements.
    """

    def thresholded(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        s = spread(_percentile(prediction.x0.abs().flatten(1), percentile).clamp(min=1), x_t)
        x0 = prediction.x0.clamp(-s, s) / s
        return _with_x0(prediction, x0, process, x_t, t)

    return thresholded


def _percentile(rows: Tensor, share: float) -> Tensor:
    """The percentile of each row, (B,); `Tensor.quantile` rejects batches of large images."""
    ordered, position = rows.sort(dim=1).values, share * (rows.shape[1] - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[:, low].lerp(ordered[:, high], position - low)


def _with_x0(
    prediction: Prediction, x0: Tensor, process: Process, x_t: Tensor, t: Any
) -> Prediction:
    alpha, sigma = process.level(t, like=x_t)
    return replace(prediction, x0=x0, eps=(x_t - alpha * x0) / sigma)


def guide(denoise: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 1 is the conditional model, 0 the unconditional; x_0 and eps are linear in the scale. The
    variance is the conditional model's.
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


def interval(
    inside: Denoise, outside: Denoise, process: Process, low: float, high: float
) -> Denoise:
    """`inside` at noise levels low < sigma / alpha <= high, `outside` at all others.

    With a guided and a plain model, guidance in a limited interval (Kynkäänniemi et al. 2024, eq.
    6). Takes one int or float time for the whole batch.
    """

    def chosen(x_t: Tensor, t: int | float, /, **cond: Any) -> Prediction:
        level = math.exp(-process.log_snr(t) / 2)
        return (inside if low < level <= high else outside)(x_t, t, **cond)

    return chosen
