"""Wrappers from `Denoise` to `Denoise`: clipping, and guidance by nothing or a weaker model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from diffuse_cli.core.denoiser import Denoise, Denoiser, Prediction
from diffuse_cli.core.process import Process, spread
from diffuse_cli.core.registry import InvalidArgument


@dataclass(frozen=True)
class Wrapped:
    """A function that predicts, with the process of the model that it wraps."""

    predict: Denoise
    process: Process

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        return self.predict(x_t, t, **cond)


def process_of(denoise: Denoise, process: Process | None = None) -> Process:
    """Return `process`, or else the one that a denoiser or a wrapper of one carries.

    Raises:
        InvalidArgument: there is none.
    """
    if process is None and isinstance(denoise, Denoiser | Wrapped):
        return denoise.process
    if process is None:
        raise InvalidArgument("is needed with a plain function", argument="process")
    return process


def carrying(denoise: Denoise, predict: Denoise) -> Denoise:
    """Return `predict`, which wraps `denoise`, with its process where it carries one."""
    if isinstance(denoise, Denoiser | Wrapped):
        return Wrapped(predict, denoise.process)
    return predict


def clip(denoise: Denoise, process: Process | None = None) -> Denoise:
    """Clamp x_0 to [-1, 1] and recompute eps = (x_t - alpha x_0) / sigma.

    Args:
        process: only needed for a plain function; also in the other wrappers.
    """
    return _changed(denoise, process, lambda x0: x0.clamp(-1, 1))


def threshold(denoise: Denoise, percentile: float, process: Process | None = None) -> Denoise:
    """Dynamic thresholding of x_0, with eps recomputed (Saharia et al. 2022, sec. 2.3).

    x_0 is clamped to [-s, s] and divided by s, the percentile of |x_0| over an image, at least 1.
    With s = 1 that is `clip`; an estimate that strong guidance saturates is scaled, not flattened.

    Args:
        percentile: in (0, 1]; interpolated between elements.
    """

    def thresholded(x0: Tensor) -> Tensor:
        s = spread(_percentile(x0.abs().flatten(1), percentile).clamp(min=1), x0)
        return x0.clamp(-s, s) / s

    return _changed(denoise, process, thresholded)


def _changed(
    denoise: Denoise, process: Process | None, change: Callable[[Tensor], Tensor]
) -> Denoise:
    """`denoise` with x_0 changed by a function, and eps recomputed."""
    own = process_of(denoise, process)

    def changed(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        return prediction.with_x0(change(prediction.x0), own, x_t, t)

    return Wrapped(changed, own)


def _percentile(rows: Tensor, share: float) -> Tensor:
    """The percentile of each row, (B,); `Tensor.quantile` rejects batches of large images."""
    ordered, position = rows.sort(dim=1).values, share * (rows.shape[1] - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[:, low].lerp(ordered[:, high], position - low)


def guide(denoise: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 1 is the conditional model, 0 the unconditional; x_0 and eps are linear in the scale. The
    variance is the conditional model's.
    """
    return away(denoise, (unconditional(denoise), scale))


def autoguide(denoise: Denoise, weak: Denoise, scale: float) -> Denoise:
    """Guidance by a weaker model of the same data and process (Karras et al. 2024b, sec. 4).

    Where the two differ the better one is likely to be right, and a step further in that direction
    better still. Scale 1 is `denoise`, and `weak` is not evaluated; 0 is `weak`. The variance is
    that of `denoise`. Their targets may differ: x_0 and eps are combined.
    """
    return away(denoise, (weak, scale))


def unconditional(denoise: Denoise) -> Denoise:
    """`denoise` told nothing: every condition that it is called with is dropped."""

    def free(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        return denoise(x_t, t, **dict.fromkeys(cond))

    return carrying(denoise, free)


def away(denoise: Denoise, *others: tuple[Denoise, float]) -> Denoise:
    """`denoise`, away from what others predict: D + sum of (s_i - 1) (D - D_i), in x_0 and eps.

    Each of the others adds a push of its own, whatever the scales of the rest: classifier-free
    guidance and a weaker model go together, at one evaluation for each.

    Args:
        others: with their scales; one of scale 1 is not evaluated.
    """

    def guided(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        own = denoise(x_t, t, **cond)
        found = [(other(x_t, t, **cond), scale) for other, scale in others if scale != 1]
        if not found:
            return own
        return replace(
            own,
            x0=_pushed(own.x0, [(their.x0, scale) for their, scale in found]),
            eps=_pushed(own.eps, [(their.eps, scale) for their, scale in found]),
            raw=None,
        )

    return carrying(denoise, guided)


def _pushed(own: Tensor, others: Sequence[tuple[Tensor, float]]) -> Tensor:
    (first, scale), *rest = others
    pushed = first + scale * (own - first)  # at scale 0 exactly the other
    for other, scale in rest:
        pushed = pushed + (scale - 1) * (own - other)
    return pushed


def interval(
    inside: Denoise, outside: Denoise, low: float, high: float, process: Process | None = None
) -> Denoise:
    """`inside` at noise levels low < sigma / alpha <= high, `outside` at all others.

    With a guided and a plain model, guidance in a limited interval (Kynkäänniemi et al. 2024, eq.
    6). Takes one int or float time for the whole batch.
    """
    own = process_of(inside, process)

    def chosen(x_t: Tensor, t: int | float, /, **cond: Any) -> Prediction:
        level = math.exp(-own.log_snr(t) / 2)
        return (inside if low < level <= high else outside)(x_t, t, **cond)

    return Wrapped(chosen, own)
