"""Group normalisation with its modulation and activation, in few passes over memory.

y = act((x - mean) / std * scale + shift) over groups of channels (Wu & He 2018); scale and shift
may differ by sample (adaptive group norm). On processors one function does it all and keeps only x
for the gradient, where separate layers would keep three tensors of its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VECTOR = 16
"""Half-precision numbers in a register. Groups that do not fill one are computed in float32:
PyTorch's channels-last group norm takes their channels one by one, which is 20 times as slow."""

PART = 2**20
"""Elements converted to float32 at a time: temporaries of this size stay in cache."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that can also scale and shift each sample, and apply SiLU."""

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        silu: bool = False,
    ) -> Tensor:
        """act(norm(x) * (1 + scale) + shift); x is (B, C, *size), scale and shift are (B, C)."""
        if not _suits(x):
            y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            if scale is not None and shift is not None:
                y = y * (1 + over_size(scale, x)) + over_size(shift, x)
            return F.silu(y) if silu else y
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if scale is not None and shift is not None:
            gain = 1 + scale.float()
            weight, bias = weight * gain, bias * gain + shift.float()
        own = (x, weight, bias, self.num_groups, self.eps, silu)
        if not torch.is_grad_enabled():  # sampling, where a Function costs as much as small norms
            return _normalised(*own)[0]
        return _Normalise.apply(*own)  # type: ignore[no-any-return, no-untyped-call]


def over_size(channels: Tensor, like: Tensor) -> Tensor:
    """(B, C) as (B, C, 1, ..., 1), to broadcast over the size of `like`."""
    return channels.reshape(*channels.shape, *[1] * (like.ndim - 2))


def _suits(x: Tensor) -> bool:
    """Whether `_Normalise` is faster: elsewhere there are fused kernels, or a compiler."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype != torch.float64
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


class _Normalise(torch.autograd.Function):
    """Group norm of channels-last x (B, C, H, W), times weight, plus bias, then SiLU if asked.

    Weight and bias are float32, (C,) or (B, C).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y, means, rstds = _normalised(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, torch.cat(means), torch.cat(rstds))
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        x = _strided(x)
        dy = _strided(dy.contiguous(memory_format=torch.channels_last))
        groups, shared = ctx.groups, weight.dim() == 1
        whole, dx = _fills(x, groups), torch.empty_like(x)
        dws, dbs = [], []
        for part in _parts(x, groups):
            own, dz = _wide(x[part], groups), _wide(dy[part], groups)
            w, x_hat = _of(weight, part), None
            if ctx.silu or not shared:
                z, x_hat, _, _ = _affine(own, w, _of(bias, part), groups, ctx.eps)
                dz = torch.ops.aten.silu_backward(dz, z) if ctx.silu else dz
            dx_part, dw, db = _gradients(dz, own, x_hat, mean[part], rstd[part], w, groups)
            if whole:
                dx = dx_part
            else:
                dx[part] = dx_part
            dws.append(dw)
            dbs.append(db)
        dw, db = (torch.stack(v).sum(0) if shared else torch.cat(v) for v in (dws, dbs))
        return dx, dw, db, None, None, None


def _normalised(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The normalised x, and the means and 1 / std of each part."""
    x = _strided(x)
    if _fills(x, groups):
        z, _, mean, rstd = _affine(x, weight, bias, groups, eps)
        return F.silu(z, inplace=True) if silu else z, [mean], [rstd]
    y, means, rstds = torch.empty_like(x), [], []
    for part in _parts(x, groups):
        own, w, b = _wide(x[part], groups), _of(weight, part), _of(bias, part)
        z, _, mean, rstd = _affine(own, w, b, groups, eps)
        y[part] = F.silu(z, inplace=True) if silu else z
        means.append(mean)
        rstds.append(rstd)
    return y, means, rstds


def _affine(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """z = x_hat * weight + bias; x_hat if weights differ by sample; mean and 1 / std."""
    if weight.dim() == 1:
        z, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)
        return z, None, mean, rstd
    # A float32 weight makes the statistics of half precision float32.
    one, zero = weight.new_ones(x.shape[1]), bias.new_zeros(x.shape[1])
    x_hat, mean, rstd = torch.native_group_norm(x, one, zero, *_sizes(x), groups, eps)
    return torch.addcmul(_spread(bias, x), x_hat, _spread(weight, x)), x_hat, mean, rstd


def _gradients(
    dz: Tensor,
    x: Tensor,
    x_hat: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias from that of z."""
    if x_hat is None:
        return _native_gradients(dz, x, mean, rstd, weight, groups)
    dbias, dweight = (_rows(v).sum(1, dtype=torch.float32) for v in (dz, dz * x_hat))
    one = weight.new_ones(x.shape[1])
    dx = _native_gradients(dz * _spread(weight, x), x, mean, rstd, one, groups)[0]
    return dx, dweight, dbias


def _native_gradients(
    dz: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
        dz, x, mean, rstd, weight, *_sizes(x), groups, [True, True, True]
    )
    return found


def _fills(x: Tensor, groups: int) -> bool:
    """Whether a group's channels fill the processor's registers."""
    return x.dtype == torch.float32 or x.shape[1] // groups % VECTOR == 0


def _wide(x: Tensor, groups: int) -> Tensor:
    """x, in float32 where its groups do not fill the registers."""
    return x if _fills(x, groups) else x.float()


def _parts(x: Tensor, groups: int) -> Iterator[slice]:
    """All samples at once, or a few at a time if they are converted."""
    step = len(x) if _fills(x, groups) else max(1, PART // x[0].numel())
    return (slice(i, i + step) for i in range(0, len(x), step))


def _of(affine: Tensor, part: slice) -> Tensor:
    """The weight or bias of some samples."""
    return affine if affine.dim() == 1 else affine[part]


def _strided(x: Tensor) -> Tensor:
    """x with channels-last strides, which are ambiguous for a side of 1."""
    _, channels, height, width = x.shape
    return x.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Samples, channels and pixels."""
    return len(x), x.shape[1], x.shape[2] * x.shape[3]


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels-last order as (B, H * W, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _spread(channels: Tensor, like: Tensor) -> Tensor:
    """`over_size` in the precision of `like`."""
    return over_size(channels.to(like.dtype), like)
