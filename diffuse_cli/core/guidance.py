"""Wrappers from `Denoise` to `Denoise`: clipping, classifier-free guidance and autoguidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from diffuse_cli.core.denoiser import Denoise, Denoiser, Prediction
from diffuse_cli.core.process import Process
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import expand_batch


@dataclass(frozen=True)
class WrappedDenoiser:
    """Function that predicts, with the process of the model that it wraps."""

    predict: Denoise
    process: Process

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        """Predict as the wrapping function does."""
        return self.predict(x_t, t, **cond)


def find_process(denoise: Denoise, process: Process | None = None) -> Process:
    """Return `process`, or by default the process of a denoiser or of a wrapped denoiser.

    Raises:
        InvalidArgument: `denoise` is a plain function, and `process` is None.
    """
    if process is None and isinstance(denoise, Denoiser | WrappedDenoiser):
        return denoise.process
    if process is None:
        raise InvalidArgument("is needed with a plain function", argument="process")
    return process


def with_process(denoise: Denoise, predict: Denoise) -> Denoise:
    """Return `predict`, a wrapper of `denoise`, with the process of `denoise` if it has one."""
    if isinstance(denoise, Denoiser | WrappedDenoiser):
        return WrappedDenoiser(predict, denoise.process)
    return predict


def clip(denoise: Denoise, process: Process | None = None) -> Denoise:
    """Clamp x_0 to [-1, 1] and recompute eps = (x_t - alpha x_0) / sigma.

    Args:
        process: the process of a plain function. It is only needed there, in every wrapper.
    """
    return _change_x0(denoise, process, lambda x0: x0.clamp(-1, 1))


def threshold(denoise: Denoise, percentile: float, process: Process | None = None) -> Denoise:
    """Threshold x_0 dynamically, and recompute eps (Saharia et al. 2022, sec. 2.3).

    x_0 is clamped to [-s, s] and divided by s, the percentile of |x_0| over an image, at least 1.
    With s = 1 the result is `clip`. Estimates that strong guidance saturates are scaled instead of
    flattened.

    Args:
        percentile: in (0, 1], interpolated between elements.
    """

    def thresholded(x0: Tensor) -> Tensor:
        s = expand_batch(_percentile(x0.abs().flatten(1), percentile).clamp(min=1), x0)
        return x0.clamp(-s, s) / s

    return _change_x0(denoise, process, thresholded)


def clamp_denoised(
    denoise: Denoise, denoiser: Denoiser, percentile: float | None = None
) -> Denoise:
    """Apply `clip` or `threshold` to a wrapper of `denoiser`, unless its data are floats."""
    if denoiser.levels is None:
        return denoise
    if percentile is None:
        return clip(denoise, denoiser.process)
    return threshold(denoise, percentile, denoiser.process)


def _change_x0(
    denoise: Denoise, process: Process | None, change: Callable[[Tensor], Tensor]
) -> Denoise:
    """Wrap `denoise` to change x_0 by a function and recompute eps."""
    process = find_process(denoise, process)

    def changed(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        return prediction.with_x0(change(prediction.x0), process, x_t, t)

    return WrappedDenoiser(changed, process)


def _percentile(rows: Tensor, fraction: float) -> Tensor:
    """Return a percentile of each row, (B,). `Tensor.quantile` rejects batches of large images."""
    ordered, position = rows.sort(dim=1).values, fraction * (rows.shape[1] - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[:, low].lerp(ordered[:, high], position - low)


def guide(denoise: Denoise, scale: float) -> Denoise:
    """Apply classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 1 is the conditional model, 0 the unconditional model. x_0 and eps are linear in the
    scale. The variance comes from the conditional model.
    """
    return guide_away(denoise, (make_unconditional(denoise), scale))


def autoguide(denoise: Denoise, weak: Denoise, scale: float) -> Denoise:
    """Guide by a weaker model of the same data and process (Karras et al. 2024b, sec. 4).

    Where the two models differ, the better model is likely to be right, and a step further in that
    direction is likely to be better still. Scale 1 is `denoise`, without evaluating `weak`, and
    scale 0 is `weak`. The variance comes from `denoise`. Their targets may differ, because x_0 and
    eps are combined.
    """
    return guide_away(denoise, (weak, scale))


def make_unconditional(denoise: Denoise) -> Denoise:
    """Wrap `denoise` to drop every condition that it is called with."""

    def free(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        return denoise(x_t, t, **dict.fromkeys(cond))

    return with_process(denoise, free)


def guide_away(denoise: Denoise, *models: tuple[Denoise, float]) -> Denoise:
    """Guide `denoise` away from other predictions: D + sum of (s_i - 1) (D - D_i), in x_0 and eps.

    Each model adds its own term, independent of the scales of the rest. So classifier-free
    guidance and autoguidance can be combined, with one evaluation for each.

    Args:
        models: the other models and their scales. A model with scale 1 is not evaluated.
    """

    def guided(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        guides = [(model(x_t, t, **cond), scale) for model, scale in models if scale != 1]
        if not guides:
            return prediction
        return replace(
            prediction,
            x0=_combine(prediction.x0, [(p.x0, scale) for p, scale in guides]),
            eps=_combine(prediction.eps, [(p.eps, scale) for p, scale in guides]),
            raw=None,
        )

    return with_process(denoise, guided)


def _combine(estimate: Tensor, guides: Sequence[tuple[Tensor, float]]) -> Tensor:
    (first, scale), *remaining = guides
    pushed = first + scale * (estimate - first)  # at scale 0 exactly `first`
    for guide_estimate, scale in remaining:
        pushed = pushed + (scale - 1) * (estimate - guide_estimate)
    return pushed


def interval(
    inside: Denoise, outside: Denoise, low: float, high: float, process: Process | None = None
) -> Denoise:
    """Use `inside` at noise levels low < sigma / alpha <= high, and `outside` at all others.

    With a guided and a plain model this is guidance in a limited interval (Kynkäänniemi et al.
    2024, eq. 6). All samples of a batch need the same time, an int or float.
    """
    process = find_process(inside, process)

    def chosen(x_t: Tensor, t: int | float, /, **cond: Any) -> Prediction:
        level = math.exp(-process.log_snr(t) / 2)
        return (inside if low < level <= high else outside)(x_t, t, **cond)

    return WrappedDenoiser(chosen, process)
