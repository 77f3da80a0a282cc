"""Optimizers `(net, *, lr, weight_decay) -> torch.optim.Optimizer`.

Training sets `lr` before each step. An optimizer with `_step_supports_amp_scaling`, like PyTorch's
fused optimizers, receives the divisor of the gradients, and whether to skip the step, as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

BETAS = (0.9, 0.99)


def adamw(net: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    import torch

    return torch.optim.AdamW(
        net.parameters(), lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True
    )


def muon(net: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
    """Muon for the weight matrices between a network's ends, AdamW for the rest.

    A network lists in `ends` the modules that read the input, times and classes, or write the
    output, because their rows or columns are not mixtures of features.
    """
    from diffuse_cli.core.muon import Muon

    matrices = dict(hidden_matrices(net))
    adamw_weights = [weight for name, weight in net.named_parameters() if name not in matrices]
    return Muon(matrices.values(), adamw_weights, lr=lr, betas=BETAS, weight_decay=weight_decay)


def hidden_matrices(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and weight matrices of a network, except the modules in its `ends`.

    A convolution of one channel per group does not count as a matrix.
    """
    ends = {*getattr(net, "ends", ())}
    for name, weight in net.named_parameters():
        if weight.ndim > 1 and weight.shape[1] > 1 and ends.isdisjoint(name.split(".")):
            yield name, weight


OPTIMIZERS: Registry[Callable[..., Any]] = Registry("optimizers", {"adamw": adamw, "muon": muon})
