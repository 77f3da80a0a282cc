"""Muon: momentum that is made orthogonal before it updates the weight matrices.

Jordan et al. 2024. The momentum M = U S V^T is replaced by about U V^T, so that every direction of
a weight matrix moves at the same rate, even rare directions.

`torch.optim.Muon` updates one matrix at a time. Updating small matrices with the same side together
halves the time of a step on CPUs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of x -> a x + b x^3 + c x^5, which applied five times brings singular values in
(0, 1] near 1 (ibid.)."""

ITERATIONS = 5

AT_ONCE = 2**22
"""Most weights to update together. Many small matrices cost as much as one, and large matrices take
memory."""

LEAST = 1e-7
"""Least norm by which a matrix is divided."""

LIKE_ADAM = 0.2
"""Root mean square of an Adam update, to which Muon's is scaled (Liu et al. 2025, eq. 4)."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, and AdamW for the other parameters, at one learning rate.

    Convolutions count as matrices (out, in * kernel). Like the fused AdamW, a step divides the
    gradients by `grad_scale` and does not update if `found_inf` is 1, if these are set.

    Args:
        matrices: the parameters for Muon, with two or more dimensions.
        adamw_weights: the parameters for AdamW.
        lr: the learning rate. The root mean square of an update is about 0.2 of it, as for Adam.
        betas: the betas of AdamW.
        weight_decay: the weight decay of AdamW. Matrices have none.
    """

    _step_supports_amp_scaling = True  # an attribute that gradient scalers check

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        adamw_weights: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        # Groups of parameters can be empty, unlike lists: a network may lack one of the kinds.
        groups = [{"params": list(adamw_weights)}]
        self._adamw = torch.optim.AdamW(
            groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        super().__init__([{"params": list(matrices)}], {"lr": lr})
        self.param_groups += self._adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights. A closure, which returns the loss, is called first."""
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
        for batch in _batches(alike.values()):
            self._move(batch, scale, bad)
        return loss

    def _move(
        self, groups: list[list[nn.Parameter]], scale: Tensor | None, bad: Tensor | None
    ) -> None:
        """Update groups of weights, each of one shape."""
        momenta = [self._momentum(weights, scale, bad) for weights in groups]
        updates = orthogonalize([ahead.flatten(2) for _, ahead in momenta])
        for weights, (momentum, _), update in zip(groups, momenta, updates, strict=True):
            buffers = [self.state[weight]["momentum"] for weight in weights]
            rows, columns = update.shape[1:]
            moved = update.view_as(momentum)
            if bad is not None:
                moved = moved * (1 - bad)
            torch._foreach_copy_(buffers, momentum.unbind())
            step_size = self.param_groups[0]["lr"] * LIKE_ADAM * max(rows, columns) ** 0.5
            torch._foreach_sub_((*weights,), moved.unbind(), alpha=step_size)

    def _momentum(
        self, weights: list[nn.Parameter], scale: Tensor | None, bad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the new and Nesterov's momentum of weights of one shape, (N, *shape).

        If `bad` is 1, both are the old momentum.
        """
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        past = torch.stack([self.state[weight]["momentum"] for weight in weights])
        gradient = torch.stack([weight.grad for weight in weights if weight.grad is not None])
        if scale is not None:
            gradient = gradient / scale
        if bad is not None:
            gradient = past.where(bad > 0, gradient)
        momentum = past.lerp(gradient, 1 - MOMENTUM)
        return momentum, gradient.lerp(momentum, MOMENTUM)


def _batches(groups: Iterable[list[nn.Parameter]]) -> Iterator[list[list[nn.Parameter]]]:
    """Yield lists of groups with at most `AT_ONCE` weights in all, or a single larger group."""
    batch: list[list[nn.Parameter]] = []
    held = 0
    for weights in groups:
        numbers = sum(weight.numel() for weight in weights)
        if batch and held + numbers > AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(weights)
        held += numbers
    if batch:
        yield batch


def orthogonalize(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Return nearly the nearest matrices with orthonormal rows or columns.

    The method is Newton-Schulz iterations X <- (a + b G + c G^2) X with G = X X^T, which need only
    products. The factors of X are polynomials of the first G, whose side is the shorter side of X.
    So the factors are computed first, together for all matrices with the same side. The smallest
    eigenvalues of G need float32. GPUs iterate X itself in bfloat16.

    Args:
        stacks: stacks of matrices (N, rows, columns).
    """
    lying = [x.mT if x.shape[1] > x.shape[2] else x for x in stacks]
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, x in enumerate(lying):
        alike[x.shape[1], x.dtype, x.device].append(place)
    orthogonal = list(lying)
    for places in alike.values():
        group = [lying[place] for place in places]
        if group[0].device.type == "cuda":
            updates = [newton_schulz(x.bfloat16()).to(x.dtype) for x in group]
        else:
            factors = _factors(torch.cat([x @ x.mT for x in group]))
            updates = [f @ x for f, x in zip(factors.split([*map(len, group)]), group, strict=True)]
        for place, x in zip(places, updates, strict=True):
            orthogonal[place] = x
    return [y.mT if x.shape != y.shape else y for x, y in zip(stacks, orthogonal, strict=True)]


def _factors(gram: Tensor) -> Tensor:
    """Return the factors by which the iterations multiply X, from X X^T (N, side, side)."""
    a, b, c = COEFFICIENTS
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=LEAST)[:, None, None]
    gram, factor = gram / norm**2, eye / norm
    for iteration in range(ITERATIONS):
        step = a * eye + b * gram + c * gram @ gram
        factor = step @ factor
        gram = gram if iteration + 1 == ITERATIONS else step @ gram @ step
    return factor


def newton_schulz(x: Tensor) -> Tensor:
    """Iterate X (N, rows, columns), with rows <= columns."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
