"""Muon: momentum whose matrices are made orthogonal before they move the weights.

Jordan et al. 2024. A gradient's momentum M = U S V^T is replaced by about U V^T, so that every
direction of a weight matrix moves at the same rate, the rare ones too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5, which five times brings singular values in (0, 1] near 1 (ibid.)."""

ITERATIONS = 5

LIKE_ADAM = 0.2
"""Root mean square of an update of Adam, which Muon's is scaled to (Liu et al. 2025, eq. 4)."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, and AdamW for the other parameters, at one learning rate.

    Convolutions count as matrices (out, in * kernel). As the fused AdamW does, a step divides the
    gradients by `grad_scale` and changes nothing where `found_inf` is 1, if these are set.

    Args:
        matrices: parameters of two or more dimensions.
        others: parameters of AdamW.
        lr: the root mean square of an update is about 0.2 of it, as Adam's.
        betas: AdamW's.
        weight_decay: AdamW's; matrices have none.
    """

    _step_supports_amp_scaling = True  # what a gradient scaler asks for

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        # As groups, which may be empty: a network may have none of one kind.
        self._adamw = torch.optim.AdamW(
            [{"params": list(others)}], lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        super().__init__([{"params": list(matrices)}], {"lr": lr})
        self.param_groups += self._adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the weights; a closure, which returns the loss, is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, bad = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        vars(self._adamw).update(
            state=self.state, param_groups=self.param_groups[1:], grad_scale=scale, found_inf=bad
        )
        self._adamw.step()
        alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for weight in self.param_groups[0]["params"]:
            if weight.grad is not None:
                alike[weight.shape, weight.device].append(weight)
        for weights in alike.values():
            self._move(weights, self.param_groups[0]["lr"], scale, bad)
        return loss

    def _move(
        self, weights: list[nn.Parameter], lr: float, scale: Tensor | None, bad: Tensor | None
    ) -> None:
        """Move weights of one shape together: their matrices are small, and there are many."""
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        past = torch.stack([self.state[weight]["momentum"] for weight in weights])
        gradient = torch.stack([weight.grad for weight in weights if weight.grad is not None])
        if scale is not None:
            gradient = gradient / scale
        momentum = past.lerp(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        update = orthogonal(ahead.flatten(2)).to(ahead.dtype).view_as(ahead)
        if bad is not None:
            momentum = past.where(bad > 0, momentum)
            update = torch.zeros_like(update).where(bad > 0, update)
        rows, columns = ahead.flatten(2).shape[1:]
        for weight, own, moved in zip(weights, momentum, update, strict=True):
            self.state[weight]["momentum"].copy_(own)
            weight.sub_(moved, alpha=lr * LIKE_ADAM * max(rows, columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices with orthonormal rows or columns, (N, rows, columns).

    By Newton-Schulz iterations, which need products only; in bfloat16 on a GPU.
    """
    x = matrices.to(torch.bfloat16 if matrices.device.type == "cuda" else matrices.dtype)
    upright = x.shape[1] > x.shape[2]
    if upright:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if upright else x
    return result
