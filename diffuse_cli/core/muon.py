"""Muon: momentum whose matrices are made orthogonal before they move the weights.

Jordan et al. 2024. A gradient's momentum M = U S V^T is replaced by about U V^T, so that every
direction of a weight matrix moves at the same rate, the rare ones too.

`torch.optim.Muon` moves one matrix at a time: moving the small ones of a side together halves the
time of a step on CPUs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5, which five times brings singular values in (0, 1] near 1 (ibid.)."""

ITERATIONS = 5

AT_ONCE = 2**22
"""Numbers of weights that move together: the steps of small matrices cost the same for many, and
those of large ones take memory."""

LEAST = 1e-7
"""The least norm that a matrix is divided by."""

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
        with torch.enable_grad():
            loss = closure() if closure else None
        scale, bad = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        vars(self._adamw).update(
            state=self.state, param_groups=self.param_groups[1:], grad_scale=scale, found_inf=bad
        )
        self._adamw.step()
        alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for weight in self.param_groups[0]["params"]:
            if weight.grad is not None:
                alike[weight.shape, weight.device].append(weight)
        for some in _portions(alike.values()):
            self._move(some, scale, bad)
        return loss

    def _move(
        self, groups: list[list[nn.Parameter]], scale: Tensor | None, bad: Tensor | None
    ) -> None:
        """Move groups of weights of one shape each."""
        momenta = [self._momentum(weights, scale) for weights in groups]
        updates = orthogonal([ahead.flatten(2) for _, _, ahead in momenta])
        for weights, (past, momentum, _), update in zip(groups, momenta, updates, strict=True):
            own = [self.state[weight]["momentum"] for weight in weights]
            rows, columns = update.shape[1:]
            moved = update.view_as(past)
            if bad is not None:
                momentum = past.where(bad > 0, momentum)
                moved = torch.zeros_like(moved).where(bad > 0, moved)
            torch._foreach_copy_(own, momentum.unbind())
            far = self.param_groups[0]["lr"] * LIKE_ADAM * max(rows, columns) ** 0.5
            torch._foreach_sub_((*weights,), moved.unbind(), alpha=far)

    def _momentum(
        self, weights: list[nn.Parameter], scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The momentum of weights of one shape, as it was and as it becomes, and Nesterov's, each
        (N, *shape): their matrices are small, and there are many."""
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        past = torch.stack([self.state[weight]["momentum"] for weight in weights])
        gradient = torch.stack([weight.grad for weight in weights if weight.grad is not None])
        if scale is not None:
            gradient = gradient / scale
        momentum = past.lerp(gradient, 1 - MOMENTUM)
        return past, momentum, gradient.lerp(momentum, MOMENTUM)


def _portions(groups: Iterable[list[nn.Parameter]]) -> Iterator[list[list[nn.Parameter]]]:
    """As many groups at a time as hold `AT_ONCE` numbers, or one that holds more."""
    some: list[list[nn.Parameter]] = []
    held = 0
    for weights in groups:
        numbers = sum(weight.numel() for weight in weights)
        if some and held + numbers > AT_ONCE:
            yield some
            some, held = [], 0
        some.append(weights)
        held += numbers
    if some:
        yield some


def orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
    """About the nearest matrices with orthonormal rows or columns, of stacks (N, rows, columns).

    By Newton-Schulz iterations X <- (a + b G + c G^2) X with G = X X^T, which need products only.
    The factors of X are polynomials of the first G, whose side is the shorter one of X, so they are
    computed first, for the matrices of a side together. The smallest eigenvalues of G ask for
    float32; GPUs iterate X itself, in bfloat16.
    """
    lying = [x.mT if x.shape[1] > x.shape[2] else x for x in stacks]
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, x in enumerate(lying):
        alike[x.shape[1], x.dtype, x.device].append(place)
    found = list(lying)
    for places in alike.values():
        own = [lying[place] for place in places]
        if own[0].device.type == "cuda":
            done = [_iterated(x.bfloat16()).to(x.dtype) for x in own]
        else:
            factors = _factors(torch.cat([x @ x.mT for x in own]))
            done = [f @ x for f, x in zip(factors.split([*map(len, own)]), own, strict=True)]
        for place, x in zip(places, done, strict=True):
            found[place] = x
    return [y.mT if x.shape != y.shape else y for x, y in zip(stacks, found, strict=True)]


def _factors(gram: Tensor) -> Tensor:
    """What the iterations multiply X by, from X X^T (N, side, side)."""
    a, b, c = COEFFICIENTS
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=LEAST)[:, None, None]
    gram, factor = gram / norm**2, eye / norm
    for _ in range(ITERATIONS):
        step = a * eye + b * gram + c * gram @ gram
        gram, factor = step @ gram @ step, step @ factor
    return factor


def _iterated(x: Tensor) -> Tensor:
    """X (N, rows, columns), rows no more than columns, after the iterations."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
