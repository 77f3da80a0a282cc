"""Dropout whose random numbers cost little on processors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Module):
    """In training, drops each element with probability p < 1 and divides the rest by 1 - p.

    On processors PyTorch draws one number per element, which took a tenth of a training step; here
    one of 64 bits decides for four elements, and p is rounded to a multiple of 2^-16 (also in the
    scale).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Shape-preserving; x itself if nothing is dropped."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        y: Tensor = _Drop.apply(x, round(self.p * LEVELS))  # type: ignore[no-untyped-call]
        return y


class _Drop(torch.autograd.Function):
    """Keep each element of x with probability 1 - dropped / LEVELS, divided by it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        # 16 random bits decide for each element; uint8 converts ten times as fast as bool.
        kept = torch.empty_like(x, dtype=torch.uint8)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits, memory = words.view(torch.int16)[: x.numel()], kept.as_strided((x.numel(),), (1,))
        torch.ge(bits, dropped - LEVELS // 2, out=memory)
        ctx.scale = LEVELS / (LEVELS - dropped)
        ctx.save_for_backward(kept)
        return _keep(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return _keep(dy, kept, ctx.scale), None


def _keep(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """x * kept * scale in one pass."""
    return torch.addcmul(x.new_zeros(()), x, kept.to(x.dtype), value=scale)
