"""The memory format in which convolutions are fastest: decided here for every device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONTIGUOUS = frozenset({"mps"})
"""Devices whose 2-D convolutions are not faster with channels last. On Metal their backward pass
takes up to 30 times as long so (PyTorch 2.13)."""


def memory_format(device: str, dimensions: int = 4) -> torch.memory_format:
    """The order in memory of tensors of so many dimensions on a type of device."""
    if dimensions == 4 and device not in CONTIGUOUS:
        return torch.channels_last
    return torch.contiguous_format


def laid_out(x: Tensor) -> Tensor:
    """x (B, C, *size) in the order of its device."""
    return x.contiguous(memory_format=memory_format(x.device.type, x.ndim))


def lay_out(net: nn.Module) -> nn.Module:
    """`net`, which is on its device, with the weights of its convolutions in that order."""
    for weight in net.parameters():  # `Module.to` refuses weights of 3-D convolutions
        if weight.ndim == 4:
            # Unlike `contiguous`, this also tells the strides of 1x1 convolutions.
            weight.data = weight.data.to(memory_format=memory_format(weight.device.type))
    return net
