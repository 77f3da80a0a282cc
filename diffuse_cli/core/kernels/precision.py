"""Weights in the precision that they are multiplied in."""

from __future__ import annotations

import torch
from torch import nn

PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Give convolutions and linear layers weights of this precision, where autocast would cast them
    anew in every evaluation; what is computed stays the same.

    A module with `keeps_precision` is left alone: it computes with its weights before they are
    multiplied.
    """
    for child in module.children():
        if isinstance(child, PRODUCTS):
            child.to(dtype)
        elif not getattr(child, "keeps_precision", False):
            cast_products(child, dtype)
