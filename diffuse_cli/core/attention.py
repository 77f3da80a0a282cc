"""Scaled dot-product attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 2**24
"""The most scores that are kept in memory on a processor."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), for (B, heads, N, D).

    Fused, except for bfloat16 on a processor, where two batched products take a third of the time.
    """
    scores = q.shape[0] * q.shape[1] * q.shape[2] ** 2
    apart = q.device.type == "cpu" and q.dtype == torch.bfloat16 and scores <= SCORES
    if not apart or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    return weighted(q, k, v)


def weighted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` as two products, keeping the scores."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), dim=-1) @ v
