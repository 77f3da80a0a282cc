"""How the weights of layers begin."""

from __future__ import annotations

from typing import Any

from torch import nn


def zeroed(module: Any) -> Any:
    """Set a layer's parameters to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def balanced(module: Any) -> Any:
    """Draw a linear layer's weights as large for its input as for its output (Glorot & Bengio
    2010, eq. 16); its bias is zero."""
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
