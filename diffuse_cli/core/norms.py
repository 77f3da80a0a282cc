"""Group normalisation with its modulation, in few passes over memory.

y = (x - mean) / std * scale + shift over groups of channels (Wu & He 2018), where scale and shift
may differ by sample, as adaptive group norm has it. PyTorch's own kernel is slow on processors in
bfloat16 and in channels-last order: there the statistics come from sums per channel, and the rest
is one multiply-add.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that can scale and shift each sample after its own affine map."""

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """norm(x) * (1 + scale) + shift; x is (B, C, H, W), scale and shift are (B, C)."""
        if x.device.type != "cpu" or x.dtype == torch.float64 or torch.compiler.is_compiling():
            y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            if scale is None or shift is None:
                return y
            return y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        weight, bias = self.weight[None], self.bias[None]
        if scale is not None and shift is not None:
            gain = 1 + scale.float()
            weight, bias = weight * gain, bias * gain + shift.float()
        return _normalise(
            x, weight.expand(len(x), -1), bias.expand(len(x), -1), self.num_groups, self.eps
        )


class _Normalise(torch.autograd.Function):
    """Normalise x (B, C, H, W) over groups, times weight (B, C), plus bias (B, C), in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        size = x[0].numel() // groups
        total = x.sum((2, 3), dtype=torch.float32)
        squares = torch.linalg.vector_norm(x, dim=(2, 3), dtype=torch.float32).square()
        mean = _per_group(total, groups) / size
        variance = (_per_group(squares, groups) / size - mean.square()).clamp(min=0)
        rstd = (variance + eps).rsqrt()
        gain = weight * rstd
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return _multiply_add(x, gain, bias - mean * gain)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        size = x[0].numel() // ctx.groups
        dy_sum = dy.sum((2, 3), dtype=torch.float32)
        dy_hat = ((dy * x).sum((2, 3), dtype=torch.float32) - mean * dy_sum) * rstd
        mean_dy = _per_group(weight * dy_sum, ctx.groups) / size
        mean_dy_hat = _per_group(weight * dy_hat, ctx.groups) / size
        slope = -rstd.square() * mean_dy_hat
        dx = _multiply_add(x, slope, -rstd * mean_dy - mean * slope)
        dx = dx.addcmul_(dy, (weight * rstd).to(dy.dtype)[:, :, None, None])
        return dx, dy_hat, dy_sum, None, None


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    y: Tensor = _Normalise.apply(x, weight, bias, groups, eps)  # type: ignore[no-untyped-call]
    return y


def _per_group(channels: Tensor, groups: int) -> Tensor:
    """Sums over the channels of each group, given to each of its channels; (B, C)."""
    batch, width = channels.shape
    size = width // groups
    sums = channels.reshape(batch, groups, size).sum(2, keepdim=True)
    return sums.expand(-1, -1, size).reshape(batch, width)


def _multiply_add(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """x * gain + bias in x's dtype and memory order, with (B, C) factors."""
    gain, bias = (v.to(x.dtype)[:, :, None, None] for v in (gain, bias))
    return torch.addcmul(bias, x, gain)
