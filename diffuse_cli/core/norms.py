"""Group normalisation with its modulation and activation, in few passes over memory.

y = act((x - mean) / std * scale + shift) over groups of channels (Wu & He 2018), where scale and
shift may differ by sample, as adaptive group norm has it. Elementwise work costs as much memory
traffic as it has passes, so on processors one function does all of it and keeps x alone for the
gradient, where separate layers keep three tensors of its size. PyTorch's own group norm is slow
there, most of all in bfloat16 and channels-last order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART = 2**19
"""Elements that the gradient works on at a time: temporaries of this size stay in cache."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that can scale and shift each sample after its own affine map, and
    apply SiLU."""

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        silu: bool = False,
    ) -> Tensor:
        """act(norm(x) * (1 + scale) + shift); x is (B, C, H, W), scale and shift are (B, C)."""
        if not _suits(x):
            y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            if scale is not None and shift is not None:
                y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
            return F.silu(y) if silu else y
        weight, bias = self.weight[None], self.bias[None]
        if scale is not None and shift is not None:
            gain = 1 + scale.float()
            weight, bias = weight * gain, bias * gain + shift.float()
        return _normalise(x, weight, bias, self.num_groups, self.eps, silu)


def _suits(x: Tensor) -> bool:
    """Whether `_Normalise` is the faster way: elsewhere there are fused kernels, or a compiler."""
    return (
        x.device.type == "cpu"
        and x.dtype != torch.float64
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


class _Normalise(torch.autograd.Function):
    """Normalise x (B, C, H, W), in channels-last order, over groups, times weight, plus bias, both
    (B, C) or (1, C) in float32, and apply SiLU where asked."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        mean, rstd = _statistics(x, groups, eps)
        gain = weight * rstd
        y = _image(_multiply_add(_rows(x), gain, bias - mean * gain), x)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dy = _rows(dy.contiguous(memory_format=torch.channels_last))
        dx = torch.empty_like(x)
        gain = weight * rstd
        offset = bias - mean * gain
        weight = weight.expand_as(gain)
        sums = []
        for part in _parts(x):
            x_part, dz = _rows(x)[part], dy[part]
            if ctx.silu:
                z = _multiply_add(x_part, gain[part], offset[part])
                dz = torch.ops.aten.silu_backward(dz, z)
            sums.append(
                _gradient(
                    x_part, dz, weight[part], mean[part], rstd[part], ctx.groups, _rows(dx)[part]
                )
            )
        dweight, dbias = (torch.cat(v) for v in zip(*sums, strict=True))
        if len(bias) == 1:
            dweight, dbias = dweight.sum(0, keepdim=True), dbias.sum(0, keepdim=True)
        return dx, dweight, dbias, None, None, None


def _gradient(
    x: Tensor, dz: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int, out: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias, (B, C), and into `out` that of x, (B, H * W, C).

    With x_hat = (x - mean) rstd and z = x_hat weight + bias, the mean over a group removed of the
    gradient itself and of its part along x_hat:
    dx = rstd (weight dz - mean(weight dz) - x_hat mean(weight dz x_hat)).
    """
    pixels = x.shape[1]
    dz_sum = dz.sum(1, dtype=torch.float32)
    dz_x_hat = ((dz * x).sum(1, dtype=torch.float32) - mean * dz_sum) * rstd
    along_one = _per_group(weight * dz_sum, groups) / pixels
    along_x_hat = _per_group(weight * dz_x_hat, groups) / pixels
    slope = -rstd.square() * along_x_hat
    _multiply_add(x, slope, -rstd * along_one - mean * slope, out=out)
    out.addcmul_(dz, (weight * rstd).to(dz.dtype)[:, None])
    return dz_x_hat, dz_sum


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    y: Tensor = _Normalise.apply(x, weight, bias, groups, eps, silu)  # type: ignore[no-untyped-call]
    return y


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std of the group that a channel is of, (B, C) in float32.

    The statistics of each sample's channels are those of batch norm for a batch of one, which
    PyTorch computes fast in every type and size; the variance of a group is the mean of its
    channels' variances, and the variance of their means.
    """
    # That these are float32 makes the results so; they are not changed.
    running = x.new_zeros(x.shape[1], dtype=torch.float32)
    found = [torch.batch_norm_update_stats(sample[None], running, running, 0.0) for sample in x]
    mean, variance = (torch.stack(values) for values in zip(*found, strict=True))
    grouped = _per_group(mean, groups)
    variance = _per_group(variance + (mean - grouped).square(), groups)
    return grouped, (variance + eps).rsqrt()


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels-last order as (B, H * W, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    image: Tensor = rows.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return image


def _parts(x: Tensor) -> Iterator[slice]:
    """Samples, a few at a time."""
    step = max(1, PART // x[0].numel())
    return (slice(i, i + step) for i in range(0, len(x), step))


def _per_group(channels: Tensor, groups: int) -> Tensor:
    """Means over the channels of each group, given to each of its channels; (B, C)."""
    means = channels.unflatten(1, (groups, -1)).mean(2, keepdim=True)
    spread: Tensor = means.expand(-1, -1, channels.shape[1] // groups).flatten(1)
    return spread


def _multiply_add(x: Tensor, gain: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """x * gain + bias in x's dtype; x is (B, N, C), the factors are (B, C)."""
    gain, bias = (v.to(x.dtype)[:, None] for v in (gain, bias))
    return torch.addcmul(bias, x, gain, out=out)
