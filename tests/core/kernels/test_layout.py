"""The memory format of each device."""

import pytest
import torch

from diffuse_cli.core import NETWORKS, Conditions, Space
from diffuse_cli.core.kernels import arrange_memory, arrange_weights, memory_format

LAST = torch.channels_last


@pytest.mark.parametrize(
    ("device", "last"),
    [("cpu", True), ("cuda", True), ("xpu", True), ("meta", True), ("mps", False)],
)
def test_channels_are_last_where_convolutions_gain_by_it(device, last):
    """On Metal the backward pass loses by it."""
    assert (memory_format(device) == LAST) is last
    assert memory_format(device, 5) == memory_format(device, 3) == torch.contiguous_format


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 4, 4), (2, 3)])
def test_tensors_of_other_dimensions_are_contiguous(shape):
    x = torch.empty(shape).transpose(0, 1)
    assert arrange_memory(x).is_contiguous()


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_a_network_arranges_its_samples_once_and_returns_them_contiguous(patch, last):
    """The first convolution reads half precision, channels last, without another copy."""
    config = NETWORKS["unet"].Config(width=8, multipliers=(1,), blocks=1, groups=4, patch=patch)
    net = NETWORKS["unet"].build(config, Space(channels=3, size=(8, 8)), Conditions())
    inputs = []
    arrange_weights(net).conv_in.register_forward_pre_hook(lambda module, x: inputs.extend(x))
    x = torch.randn(2, 3, 8, 8).to(memory_format=LAST if last else torch.contiguous_format)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, torch.zeros(2))
    assert [each.dtype for each in inputs] == [torch.bfloat16]
    assert inputs[0].is_contiguous(memory_format=LAST)
    assert y.is_contiguous()


def test_nothing_in_a_network_on_metal_is_channels_last(monkeypatch):
    """Neither its weights nor what its convolutions see, there and back."""
    from diffuse_cli.core import kernels

    monkeypatch.setattr(kernels, "CONTIGUOUS", {"cpu"})
    net = NETWORKS["unet"].build(
        NETWORKS["unet"].Config(width=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4),
        Space(channels=3, size=(8, 8)),
        Conditions(),
    )
    found = []

    def look(name, tensors):
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 4 and min(tensor.shape) > 1:
                found.extend([name] * (tensor.stride(1) == 1))

    def watch(name, inputs, y):
        look(name, [*inputs, y])
        if isinstance(y, torch.Tensor) and y.requires_grad:
            y.register_hook(lambda gradient: look(f"gradient of {name}", [gradient]))

    for name, module in arrange_weights(net).named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, y, name=name: watch(name, i, y))
    assert arrange_memory(torch.randn(2, 3, 8, 8).to(memory_format=LAST)).is_contiguous()
    net(arrange_memory(torch.randn(2, 3, 8, 8)), torch.zeros(2)).square().mean().backward()
    look("weights and gradients", [t for p in net.parameters() for t in (p, p.grad)])
    assert not found
