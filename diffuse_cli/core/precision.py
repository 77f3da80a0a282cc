"""Weights in the precision of their products."""

from __future__ import annotations

import torch
from torch import nn

PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of convolutions and linear layers once; autocast would at every evaluation.

    Results do not change. Modules with `keeps_precision`, which compute with their weights first,
    are skipped.
    """
    for child in module.children():
        if isinstance(child, PRODUCTS):
            child.to(dtype)
        elif not getattr(child, "keeps_precision", False):
            cast_products(child, dtype)
