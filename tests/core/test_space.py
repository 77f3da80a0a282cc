"""Spaces and conditions: from what is stored to what a model sees, and back."""

import pytest
import torch

from diffuse_cli.core import InvalidArgument, Space
from diffuse_cli.core.space import TRANSFORMS


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (257, torch.int32), (65_536, torch.int32)],
)
def test_every_level_comes_back_rounded_and_not_truncated(levels, dtype):
    space = Space(channels=1, size=(1,), levels=levels)
    stored = torch.arange(levels).reshape(-1, 1, 1)
    x = space.to_model(stored)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert torch.allclose(x, stored / ((levels - 1) / 2) - 1)
    for values in (x, x.double(), x.clone().requires_grad_()):
        back = space.to_stored(values)
        assert back.dtype == dtype
        assert torch.equal(back.long(), stored)
    assert torch.equal(space.to_stored(x * 3).long()[[0, -1], 0, 0], torch.tensor([0, levels - 1]))
    every = Space(channels=1, size=(1,), levels=levels, limits=(0, levels - 1))
    assert torch.equal(every.to_model(stored), x), "all levels as limits are as none"


@pytest.mark.parametrize("limits", [(120, 2600), (0, 1), (5, 40_000), (65_534, 65_535)])
def test_every_level_between_limits_comes_back(limits):
    space, (low, high) = Space(channels=1, size=(1,), levels=65_536, limits=limits), limits
    stored = torch.arange(low, high + 1).reshape(-1, 1, 1)
    x = space.to_model(stored)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert torch.equal(space.to_stored(x).long(), stored)
    assert space.to_stored(torch.tensor([-9.0, 9.0])).tolist() == [low, high]
    assert space.bins == high - low + 1
    # The bins of the decoder are those levels.
    apart = x[1:].double() - x[:-1].double()
    assert torch.allclose(apart, torch.full_like(apart, 2 / (space.bins - 1)), rtol=0.05)


def test_floats_are_standardized_channel_by_channel():
    space = Space(channels=2, size=(2, 3, 4), levels=None, mean=(1, -2.5), std=(2, 0.5))
    assert (space.shape, space.dims) == ((2, 2, 3, 4), 3)
    assert space.mean == (1.0, -2.5)
    stored = torch.randn(5, 2, 2, 3, 4) * 100
    x = space.to_model(stored)
    assert torch.allclose(x[:, 0], (stored[:, 0] - 1) / 2)
    assert torch.allclose(x[:, 1], (stored[:, 1] + 2.5) / 0.5)
    assert torch.allclose(space.to_stored(x), stored, rtol=1e-5, atol=1e-4)


FLOATS = {"levels": None, "mean": (0.0,), "std": (1.0,)}

WRONG = [
    *(("channels", {"channels": value}) for value in (0, 65)),
    *(("size", {"size": value}) for value in ((), (1, 2, 3, 4), (8, 4097), (2**20 + 1,), 8)),
    *(("levels", {"levels": value}) for value in (1, 65_537)),
    *(("limits", {"limits": value}) for value in ((3,), (3, 3), (0, 256), (-1, 2))),
    ("limits", {**FLOATS, "limits": (0, 1)}),
    ("mean", {"mean": (0.0,)}), ("mean", {"levels": None}),
    ("mean", {**FLOATS, "mean": (float("nan"),)}),
    ("std", {**FLOATS, "std": (0.0,)}), ("std", {**FLOATS, "std": (1.0, 1.0)}),
    ("transform", {"transform": "log"}), ("transform", {**FLOATS, "transform": "asinhh"}),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "wrong"), WRONG, ids=str)
def test_a_space_that_cannot_be_is_refused(argument, wrong):
    with pytest.raises(InvalidArgument) as caught:
        Space(**{"channels": 1, "size": (8, 8), **wrong})
    assert caught.value.argument == argument
    for size in ((2**20,), (4096, 1), (1, 4096, 1)):  # the longest sides
        assert Space(channels=1, size=size).size == size


def test_plain_values_give_the_space_back():
    floats = Space(channels=1, size=(8,), **FLOATS, transform="asinh")
    for space in (floats, Space(channels=3, size=(8, 8)), Space(channels=1, size=(8,), levels=2)):
        assert Space.from_dict(space.to_dict()) == space
    plain = Space(channels=1, size=(8, 8), transform="none").to_dict()
    assert not {"transform", "layout"} & set(plain), "older versions would refuse these keys"


# -- transforms of floats -------------------------------------------------------------------------

X = torch.tensor([1e-20, 1e-3, 0.5, 1, 2, 1e3, 1e10], dtype=torch.float64)
transforms = pytest.mark.parametrize("name", list(TRANSFORMS))


@transforms
def test_the_inverse_undoes_it_and_the_slope_is_the_derivative(name):
    one, x = TRANSFORMS[name], X if name == "log" else torch.cat([-X.flip(0), X.new_zeros(1), X])
    assert torch.allclose(one.inverse(one.forward(x)), x, rtol=1e-6, atol=0)
    assert bool((one.forward(x).diff() > 0).all())
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(one.forward(leaf).sum(), leaf)
    assert torch.allclose(one.log_slope(x), slope.log(), rtol=1e-6, atol=1e-6)


@transforms
def test_a_space_transforms_then_standardizes(name):
    space = Space(channels=1, size=(7,), levels=None, mean=(2,), std=(3,), transform=name)
    stored = X.clamp(min=1e-3).float().reshape(1, 1, 7)
    x = space.to_model(stored)
    assert torch.allclose(x, (TRANSFORMS[name].forward(stored) - 2) / 3)
    assert torch.allclose(space.to_stored(x), stored, rtol=1e-4)
    leaf = stored.clone().requires_grad_()
    (slope,) = torch.autograd.grad(space.to_model(leaf).sum(), leaf)
    assert torch.allclose(space.log_slope(stored), slope.log(), rtol=1e-4, atol=1e-4)
