"""Transforms of floats: there and back, and how they stretch densities."""

import pytest
import torch

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import TRANSFORMS, Space

X = torch.tensor([1e-20, 1e-3, 0.5, 1, 2, 1e3, 1e10], dtype=torch.float64)


def numbers(name):
    return X if name == "log" else torch.cat([-X.flip(0), X.new_zeros(1), X])


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_the_inverse_undoes_it(name):
    one, x = TRANSFORMS[name], numbers(name)
    assert torch.allclose(one.inverse(one.forward(x)), x, rtol=1e-6, atol=0)
    assert bool((one.forward(x).diff() > 0).all())


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_the_slope_is_the_derivative(name):
    one, x = TRANSFORMS[name], numbers(name).requires_grad_()
    (slope,) = torch.autograd.grad(one.forward(x).sum(), x)
    assert torch.allclose(one.log_slope(x), slope.log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_a_space_transforms_then_standardizes(name):
    space = Space(channels=1, size=(7,), levels=None, mean=(2,), std=(3,), transform=name)
    stored = X.clamp(min=1e-3).float().reshape(1, 1, 7)
    x = space.to_model(stored)
    assert torch.allclose(x, (TRANSFORMS[name].forward(stored) - 2) / 3)
    assert torch.allclose(space.to_stored(x), stored, rtol=1e-4)
    leaf = stored.clone().requires_grad_()
    (slope,) = torch.autograd.grad(space.to_model(leaf).sum(), leaf)
    assert torch.allclose(space.log_slope(stored), slope.log(), rtol=1e-4, atol=1e-4)


def test_plain_values_give_the_space_back():
    floats = Space(channels=1, size=(8,), levels=None, mean=(0,), std=(1,), transform="asinh")
    for space in (floats, Space(channels=3, size=(8, 8)), Space(channels=1, size=(8,), levels=2)):
        assert Space.from_dict(space.to_dict()) == space
    plain = Space(channels=1, size=(8, 8)).to_dict()
    assert not {"transform", "layout"} & set(plain), "older versions would refuse these keys"


def test_levels_have_no_transform():
    with pytest.raises(InvalidArgument) as caught:
        Space(channels=1, size=(8,), transform="log")
    assert caught.value.argument == "transform"
    with pytest.raises(InvalidArgument, match="asinh"):
        Space(channels=1, size=(8,), levels=None, mean=(0,), std=(1,), transform="asinhh")
    assert Space(channels=1, size=(8,), transform="none").transform is None
