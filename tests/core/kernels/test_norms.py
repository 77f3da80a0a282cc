"""Group normalization against PyTorch's."""

import contextlib
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from oracles import generator
from torch._subclasses import FakeTensorMode

from diffuse_cli.core import kernels
from diffuse_cli.core.kernels import GroupNorm


def made(dtype=torch.float32, *, last=False, shape=(3, 8, 5, 7)):
    """x, gain, bias, scale, shift and the output's gradient."""
    g = generator(3)
    x = 2 * torch.randn(shape, generator=g) + 0.7
    gain, bias = torch.randn(2, shape[1], generator=g)
    scale, shift = torch.randn(2, shape[0], shape[1], generator=g)
    dy = torch.randn(shape, generator=g)
    tensors = [v.to(dtype) for v in (x, gain, bias, scale, shift, dy)]
    if last:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
        tensors[5] = tensors[5].contiguous(memory_format=torch.channels_last)
    return tensors


def ours(groups, x, gain, bias, scale, shift, silu=False):
    norm = GroupNorm(groups, x.shape[1], eps=1e-5)
    norm.weight, norm.bias = torch.nn.Parameter(gain), torch.nn.Parameter(bias)
    return norm(x, scale, shift, silu=silu), norm


def theirs(groups, x, gain, bias, scale, shift, silu=False):
    y = F.group_norm(x, groups, gain, bias, 1e-5)
    y = y if scale is None else y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if silu else y


def apart(found, expected):
    """The norm of the difference, relative."""
    return float((found.detach().double() - expected).norm() / expected.norm())


def compared(groups, tensors, modulated, silu, within):
    """Our value, after it and the gradients have been compared with PyTorch's in float64."""
    x, gain, bias, scale, shift, dy = tensors
    if not modulated:
        scale = shift = None
    inputs = [v.clone().requires_grad_() for v in (x, scale, shift) if v is not None]
    x1, *rest = inputs
    weights = [v if v.dtype == torch.float64 else v.float() for v in (gain, bias)]
    y, norm = ours(groups, x1, *weights, *(rest or (None, None)), silu)
    y.backward(dy)
    exact = [v.detach().double().requires_grad_() for v in (x, gain, bias)]
    modulation = [v.detach().double().requires_grad_() for v in (scale, shift) if v is not None]
    expected = theirs(groups, *exact, *(modulation or (None, None)), silu)
    expected.backward(dy.double())
    assert apart(y, expected.detach()) < within
    assert y.dtype == x1.grad.dtype == x.dtype
    assert norm.weight.grad.dtype == weights[0].dtype
    found = [x1.grad, norm.weight.grad, norm.bias.grad, *(v.grad for v in rest)]
    for ours_, theirs_ in zip(found, [*exact, *modulation], strict=True):
        assert apart(ours_, theirs_.grad) < 2 * within
    return y


@pytest.mark.parametrize("silu", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_values_and_gradients_are_pytorchs(groups, modulated, last, silu):
    for dtype, within in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        y = compared(groups, made(dtype, last=last), modulated, silu, within)
        order = torch.channels_last if last else torch.contiguous_format
        assert y.is_contiguous(memory_format=order)


@pytest.mark.parametrize("part", [2**20, 1], ids=["whole", "by sample"])
@pytest.mark.parametrize("silu", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("channels", [4, 16], ids=["converted", "filled"])
def test_bfloat16_is_close_to_float32(channels, modulated, last, silu, part, monkeypatch):
    """Groups of fewer than 16 channels are converted, a few samples at a time."""
    monkeypatch.setattr(kernels, "PART", part)
    tensors = made(torch.bfloat16, last=last, shape=(3, 2 * channels, 5, 7))
    compared(2, tensors, modulated, silu, 0.01)


def test_a_side_of_one_leaves_the_order_open():
    """A batch of one, or images of one pixel, count as channels-last with any strides there."""
    g = generator(4)
    for shape in ((1, 8, 3, 2), (2, 8, 1, 1), (1, 8, 1, 4)):
        x = torch.randn(shape[0] * 2, *shape[2:], shape[1], generator=g).permute(0, 3, 1, 2)
        x = x[:1].as_strided(shape, (1, *x.stride()[1:])) if shape[0] == 1 else x[:2]
        _, gain, bias, *_ = made()
        y, _ = ours(2, x, gain, bias, None, None)
        assert torch.allclose(y, theirs(2, x, gain, bias, None, None), atol=2e-5)


def test_a_constant_image_gives_the_bias_and_no_gradient_is_asked_of_a_frozen_input():
    x, gain, bias, *_ = made(last=True)
    y, norm = ours(2, torch.full_like(x, 3.0), gain, bias, None, None)
    assert torch.allclose(y, bias[None, :, None, None].expand_as(y), atol=1e-3)
    y.sum().backward()
    assert torch.allclose(norm.bias.grad, torch.full_like(bias, 3 * 5 * 7))


def test_images_without_values_are_one_part(monkeypatch):
    """Memory is counted with a large batch, whose parts would take a minute at 256 pixels."""
    monkeypatch.setattr(kernels, "PART", 1)
    for mode, parts in ((FakeTensorMode(), 1), (contextlib.nullcontext(), 3)):
        normalize = Mock(wraps=torch.native_group_norm)
        monkeypatch.setattr(torch, "native_group_norm", normalize)
        with mode:
            x = torch.zeros(3, 8, 5, 7, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last)
            GroupNorm(2, 8)(x)
        assert normalize.call_count == parts
