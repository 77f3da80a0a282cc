"""Scaled dot-product attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 2**24
"""Products of queries and keys that may be kept at a time on a processor."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), for (B, heads, N, D).

    Fused, but for bfloat16 on a processor: there two batched products take a third of the time and
    keep the scores, of which an image has few.
    """
    scores = q.shape[0] * q.shape[1] * q.shape[2] ** 2
    apart = q.device.type == "cpu" and q.dtype == torch.bfloat16 and scores <= SCORES
    if not apart or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    return weighted(q, k, v)


def weighted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend`, as it is written."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), dim=-1) @ v
