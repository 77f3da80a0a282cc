"""Fast group normalization, attention and dropout, and the memory format of convolutions.

Group norm is y = act((x - mean) / std * scale + shift) over groups of channels (Wu & He 2018).
Scale and shift can differ between samples (adaptive group norm). On CPUs one function computes all
of it in few passes over memory to sample, and to train with narrow groups. It keeps only x for the
gradient, so it computes the rest again in the backward pass. With wide groups PyTorch's layers,
which keep three tensors of that size, train faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VECTOR = 16
"""Half-precision numbers in a register. Groups that do not fill a register are computed in float32,
because PyTorch's channels-last group norm loops over their channels, which is 20 times as slow."""

PART = 2**20
"""Elements to convert to float32 at a time. Temporaries of this size stay in cache."""


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
        """Return act(norm(x) * (1 + scale) + shift) for x (B, C, *size), scale and shift (B, C)."""
        trained = torch.is_grad_enabled() and x.requires_grad  # else its gradient crashes PyTorch
        if (trained and _fills_registers(x, self.num_groups)) or not _is_fast_case(x):
            y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            if scale is not None and shift is not None:
                y = y * (1 + expand_channels(scale, x)) + expand_channels(shift, x)
            return F.silu(y) if silu else y
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if scale is not None and shift is not None:
            gain = 1 + scale.float()
            weight, bias = weight * gain, bias * gain + shift.float()
        arguments = (x, weight, bias, self.num_groups, self.eps, silu)
        if not torch.is_grad_enabled():  # sampling, where a Function costs as much as small norms
            return _normalize_parts(*arguments)[0]
        return _FusedGroupNorm.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def expand_channels(channels: Tensor, like: Tensor) -> Tensor:
    """Reshape (B, C) to (B, C, 1, ..., 1), to broadcast over the size of `like`."""
    return channels.reshape(*channels.shape, *[1] * (like.ndim - 2))


def _is_fast_case(x: Tensor) -> bool:
    """Whether `_FusedGroupNorm` is faster. Otherwise there are fused kernels, or a compiler."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.dtype != torch.float64
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


class _FusedGroupNorm(torch.autograd.Function):
    """Group norm of channels-last x (B, C, H, W), times weight, plus bias, with optional SiLU.

    Weight and bias are float32, (C,) or (B, C). Used for groups that do not fill the registers, and
    for an x without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y, means, rstds = _normalize_parts(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, torch.cat(means), torch.cat(rstds))
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        x = _restride(x)
        dy = _restride(dy.contiguous(memory_format=torch.channels_last))
        groups, shared = ctx.groups, weight.dim() == 1
        dx, dws, dbs = torch.empty_like(x), [], []
        for part in _parts(x, groups):
            x_part, dz = _widen(x[part], groups), _widen(dy[part], groups)
            w, x_hat = _affine_part(weight, part), None
            if ctx.silu or not shared:
                z, x_hat, _, _ = _affine(x_part, w, _affine_part(bias, part), groups, ctx.eps)
                dz = torch.ops.aten.silu_backward(dz, z) if ctx.silu else dz
            dx[part], dw, db = _gradients(dz, x_part, x_hat, mean[part], rstd[part], w, groups)
            dws.append(dw)
            dbs.append(db)
        dw, db = (torch.stack(v).sum(0) if shared else torch.cat(v) for v in (dws, dbs))
        return dx, dw, db, None, None, None


def _normalize_parts(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the normalized x, and the means and 1 / std of each part."""
    x = _restride(x)
    if _fills_registers(x, groups):
        z, _, mean, rstd = _affine(x, weight, bias, groups, eps)
        return F.silu(z, inplace=True) if silu else z, [mean], [rstd]
    y, means, rstds = torch.empty_like(x), [], []
    for part in _parts(x, groups):
        x_part, w, b = _widen(x[part], groups), _affine_part(weight, part), _affine_part(bias, part)
        z, _, mean, rstd = _affine(x_part, w, b, groups, eps)
        y[part] = F.silu(z, inplace=True) if silu else z
        means.append(mean)
        rstds.append(rstd)
    return y, means, rstds


def _affine(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return z = x_hat * weight + bias, x_hat if weights differ by sample, mean, and 1 / std."""
    if weight.dim() == 1:
        z, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)
        return z, None, mean, rstd
    # A float32 weight makes the statistics of half precision float32.
    one, zero = weight.new_ones(x.shape[1]), bias.new_zeros(x.shape[1])
    x_hat, mean, rstd = torch.native_group_norm(x, one, zero, *_sizes(x), groups, eps)
    return torch.addcmul(_expand_cast(bias, x), x_hat, _expand_cast(weight, x)), x_hat, mean, rstd


def _gradients(
    dz: Tensor,
    x: Tensor,
    x_hat: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias from the gradient of z."""
    if x_hat is None:
        return _native_gradients(dz, x, mean, rstd, weight, groups)
    rows = (v.permute(0, 2, 3, 1).flatten(1, 2) for v in (dz, dz * x_hat))
    dbias, dweight = (v.sum(1, dtype=torch.float32) for v in rows)
    one = weight.new_ones(x.shape[1])
    dx = _native_gradients(dz * _expand_cast(weight, x), x, mean, rstd, one, groups)[0]
    return dx, dweight, dbias


def _native_gradients(
    dz: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
        dz, x, mean, rstd, weight, *_sizes(x), groups, [True, True, True]
    )
    return gradients


def _fills_registers(x: Tensor, groups: int) -> bool:
    """Whether a group's channels fill the CPU's registers."""
    return x.dtype == torch.float32 or x.shape[1] // groups % VECTOR == 0


def _widen(x: Tensor, groups: int) -> Tensor:
    """Return x, in float32 if its groups do not fill the registers."""
    return x if _fills_registers(x, groups) else x.float()


def _parts(x: Tensor, groups: int) -> Iterator[slice]:
    """Return slices of the samples: one of all, or several small ones to convert to float32."""
    step = max(1, PART // x.shape[1:].numel())
    if _fills_registers(x, groups) or x.untyped_storage().device.type == "meta":
        step = len(x)  # without values, each part would only take time
    return (slice(i, i + step) for i in range(0, len(x), step))


def _affine_part(affine: Tensor, part: slice) -> Tensor:
    """Return the weight or bias of some samples."""
    return affine if affine.dim() == 1 else affine[part]


def _restride(x: Tensor) -> Tensor:
    """Return x with canonical channels-last strides, which are ambiguous for a side of 1."""
    _, channels, height, width = x.shape
    return x.as_strided(x.shape, (height * width * channels, 1, width * channels, channels))


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return the numbers of samples, channels and pixels."""
    return len(x), x.shape[1], x.shape[2] * x.shape[3]


def _expand_cast(channels: Tensor, like: Tensor) -> Tensor:
    """Return `expand_channels` in the precision of `like`."""
    return expand_channels(channels.to(like.dtype), like)


# -- attention ------------------------------------------------------------------------------------

# Scaled dot-product attention.

SCORES = 2**24
"""Most attention scores to keep in memory on a CPU."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), for (B, heads, N, D).

    It is fused, except for bfloat16 on a CPU, where two batched products take a third of the time.
    """
    scores = q.shape[0] * q.shape[1] * q.shape[2] ** 2
    unfused = q.device.type == "cpu" and q.dtype == torch.bfloat16 and scores <= SCORES
    if not unfused or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)
    return attend_unfused(q, k, v)


def attend_unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute `attend` as two products, with all scores in memory."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), dim=-1) @ v


# -- precision ------------------------------------------------------------------------------------

# Weights in the precision of their products.

PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of convolutions and linear layers once, not at each evaluation as autocast.

    Results do not change. Modules with `keeps_precision` are skipped, because they compute with
    their weights before casting them.
    """
    for child in module.children():
        if isinstance(child, PRODUCTS):
            child.to(dtype)
        elif not getattr(child, "keeps_precision", False):
            cast_weights(child, dtype)


def cast_as_autocast(x: Tensor) -> Tensor:
    """Return x in the precision of products under autocast. Without autocast, return x itself."""
    device = x.device.type
    enabled = device != "meta" and torch.is_autocast_enabled(device)
    return x.to(torch.get_autocast_dtype(device)) if enabled else x


# -- dropout --------------------------------------------------------------------------------------

# Dropout with cheap random numbers on CPUs.

LEVELS = 2**16


class Dropout(nn.Module):
    """Dropout: in training, drop each element with probability p < 1 and divide the rest by 1 - p.

    On CPUs PyTorch draws one random number per element, which took a tenth of a training step. Here
    a random number of 64 bits decides for four elements, and p is rounded to a multiple of 2^-16,
    also in the scale.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x. In evaluation, or if p is 0, return x itself."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        y: Tensor = _FusedDropout.apply(x, round(self.p * LEVELS))  # type: ignore[no-untyped-call]
        return y


class _FusedDropout(torch.autograd.Function):
    """Dropout that keeps each element of x with probability 1 - dropped / LEVELS, divided by it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        # 16 random bits decide for each element; uint8 converts ten times as fast as bool.
        mask = torch.empty_like(x, dtype=torch.uint8)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits, memory = words.view(torch.int16)[: x.numel()], mask.as_strided((x.numel(),), (1,))
        torch.ge(bits, dropped - LEVELS // 2, out=memory)
        ctx.scale = LEVELS / (LEVELS - dropped)
        ctx.save_for_backward(mask)
        return _scale_kept(x, mask, ctx.scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return _scale_kept(dy, mask, ctx.scale), None


def _scale_kept(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return x * mask * scale in one pass."""
    return torch.addcmul(x.new_zeros(()), x, mask.to(x.dtype), value=scale)


# -- layout ---------------------------------------------------------------------------------------

# The fastest memory format of convolutions, for every device.

CONTIGUOUS = frozenset({"mps"})
"""Devices whose 2-D convolutions are not faster with channels last. On Metal that makes their
backward pass up to 30 times as slow (PyTorch 2.13)."""


def memory_format(device: str, dimensions: int = 4) -> torch.memory_format:
    """Return the memory format for tensors of a number of dimensions on a type of device."""
    if dimensions == 4 and device not in CONTIGUOUS:
        return torch.channels_last
    return torch.contiguous_format


def arrange_memory(x: Tensor) -> Tensor:
    """Return x (B, C, *size) in the memory format of its device."""
    return x.contiguous(memory_format=memory_format(x.device.type, x.ndim))


def arrange_weights(net: nn.Module) -> nn.Module:
    """Set the memory format of the weights of convolutions in `net`, which is on its device."""
    for weight in net.parameters():  # `Module.to` refuses weights of 3-D convolutions
        if weight.ndim == 4:
            # Unlike `contiguous`, this also changes the strides of 1x1 convolutions.
            weight.data = weight.data.to(memory_format=memory_format(weight.device.type))
    return net
