"""Spaces and conditions: from what is stored to what a model sees, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffuse_cli.core import Conditions, InvalidArgument, Space


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (257, torch.int32), (65_536, torch.int32)],
)
def test_every_level_comes_back(levels: int, dtype: torch.dtype):
    space = Space(channels=1, size=(1,), levels=levels)
    stored = torch.arange(levels).reshape(-1, 1, 1)
    x = space.to_model(stored)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1, 1)
    back = space.to_stored(x)
    assert back.dtype == dtype
    assert torch.equal(back.long(), stored)
    assert torch.equal(space.to_stored(x * 3).long()[[0, -1], 0, 0], torch.tensor([0, levels - 1]))


def test_levels_are_rounded_not_truncated():
    space, stored = Space(channels=1, size=(1,)), torch.arange(256).reshape(-1, 1, 1)
    x = space.to_model(stored)
    truncated = ((x + 1) * 127.5).to(torch.uint8)
    assert (truncated != stored).any(), "the trap is not there: this test proves nothing"
    for values in (x, x.double(), x.requires_grad_()):
        assert torch.equal(space.to_stored(values), stored.byte())


@pytest.mark.parametrize("limits", [(120, 2600), (0, 1), (5, 40_000), (65_534, 65_535)])
def test_every_level_between_limits_comes_back(limits: tuple[int, int]):
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


def test_all_levels_as_limits_are_as_none():
    stored = torch.arange(65_536).reshape(-1, 1, 1)
    every, none = (
        Space(channels=1, size=(1,), levels=65_536, limits=limits) for limits in ((0, 65_535), None)
    )
    assert torch.equal(every.to_model(stored), none.to_model(stored))
    assert torch.equal(none.to_model(stored), stored.float() / 32_767.5 - 1)


def test_floats_are_standardized_channel_by_channel():
    space = Space(channels=2, size=(2, 3, 4), levels=None, mean=(1, -2.5), std=(2, 0.5))
    assert (space.shape, space.dims) == ((2, 2, 3, 4), 3)
    assert space.mean == (1.0, -2.5)
    stored = torch.randn(5, 2, 2, 3, 4) * 100
    x = space.to_model(stored)
    assert torch.allclose(x[:, 0], (stored[:, 0] - 1) / 2)
    assert torch.allclose(x[:, 1], (stored[:, 1] + 2.5) / 0.5)
    assert torch.allclose(space.to_stored(x), stored, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"channels": 0}, "channels"),
        ({"channels": 65}, "channels"),
        ({"size": ()}, "size"),
        ({"size": (1, 2, 3, 4)}, "size"),
        ({"size": (8, 4097)}, "size"),
        ({"size": (2**20 + 1,)}, "size"),
        ({"size": 8}, "size"),
        ({"levels": 1}, "levels"),
        ({"levels": 65_537}, "levels"),
        ({"mean": (0.0,)}, "mean"),
        ({"limits": (3,)}, "limits"),
        ({"limits": (3, 3)}, "limits"),
        ({"limits": (0, 256)}, "limits"),
        ({"limits": (-1, 2)}, "limits"),
        ({"levels": None, "mean": (0.0,), "std": (1.0,), "limits": (0, 1)}, "limits"),
        ({"levels": None}, "mean"),
        ({"levels": None, "mean": (0.0,), "std": (0.0,)}, "std"),
        ({"levels": None, "mean": (0.0,), "std": (1.0, 1.0)}, "std"),
        ({"levels": None, "mean": (float("nan"),), "std": (1.0,)}, "mean"),
    ],
    ids=str,
)
def test_a_space_that_cannot_be_is_refused(wrong: dict[str, Any], argument: str):
    with pytest.raises(InvalidArgument) as caught:
        Space(**{"channels": 1, "size": (8, 8), **wrong})
    assert caught.value.argument == argument


@pytest.mark.parametrize("size", [(2**20,), (4096, 1), (1, 4096, 1)])
def test_the_longest_sides_are_allowed(size: tuple[int, ...]):
    assert Space(channels=1, size=size).size == size


def test_an_unlabeled_sample_is_told_the_label_after_the_last():
    labels = torch.tensor([-1, 0, 2, -1])
    assert Conditions().make_keywords(labels) == {}
    assert Conditions(classes=("a", "b", "c")).make_keywords(labels)["label"].tolist() == [
        3,
        0,
        2,
        3,
    ]
