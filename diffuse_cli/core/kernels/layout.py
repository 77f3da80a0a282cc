"""The memory format in which convolutions are fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def laid_out(x: Tensor) -> Tensor:
    """x (B, C, H, W) with channels last in memory; x of other dimensions contiguous."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def lay_out(net: nn.Module) -> nn.Module:
    """`net` with the weights of its 2-D convolutions channels last, in place."""
    for weight in net.parameters():  # `Module.to` refuses weights of 3-D convolutions
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)
    return net
