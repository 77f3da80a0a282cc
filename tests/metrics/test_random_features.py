"""Features of random weights: of any shape, always the same, and sensitive to what differs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffuse_cli.core.space import Space
from diffuse_cli.metrics import random_kid
from diffuse_cli.metrics.features import extract_features
from diffuse_cli.metrics.features.feature_choice import build_random_network
from diffuse_cli.system.events import finish

CPU = torch.device("cpu")

SHAPES = [(1, 5), (3, 64), (2, 7, 9), (4, 16, 16), (1, 1, 1), (2, 6, 5, 4)]


def space_of(shape: tuple[int, ...], **more) -> Space:
    floats = {"levels": None, "mean": (0.0,) * shape[0], "std": (1.0,) * shape[0]}
    return Space(channels=shape[0], size=shape[1:], medium="array", **{**floats, **more})


def draws(seed: int, n: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def features(space: Space, real: np.ndarray, samples: np.ndarray, **more) -> np.ndarray:
    return finish(extract_features(build_random_network(space, real, CPU), samples, **more))


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_has_features_and_they_do_not_depend_on_the_batch(shape):
    real = draws(0, 6, shape)
    network = build_random_network(space_of(shape), real, CPU)
    found = finish(extract_features(network, real))
    assert found.shape == (6, network.dim)
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == 6
    again = features(space_of(shape), real, real[::-1].copy(), batch_size=1)
    np.testing.assert_allclose(again[::-1], found, rtol=1e-5, atol=1e-6)


def test_the_weights_are_these():
    """Other weights give other numbers under the same name."""
    network = build_random_network(space_of((1, 8, 8)), draws(0, 4, (1, 8, 8)), CPU)
    assert network.describe()["name"] == "random"
    assert network.weights.startswith("f1dad8846a9bcf76")


def test_units_change_nothing():
    real, unit = draws(0, 8, (2, 12)), np.array([[1e-4], [1e5]], np.float32)
    found = features(space_of((2, 12)), real, real)
    scaled = features(space_of((2, 12)), unit * real + 3 * unit, unit * real + 3 * unit)
    np.testing.assert_allclose(scaled, found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 256, 65_536])
def test_levels_have_the_features_of_floats(levels):
    kind = {2: np.bool_, 256: np.uint8, 65_536: np.uint16}[levels]
    real = np.random.default_rng(0).integers(0, levels, (5, 1, 9, 9)).astype(kind)
    space = space_of((1, 9, 9), levels=levels, mean=(), std=())
    found = features(space, real, real)
    floats = real.astype(np.float32)
    expected = features(space_of((1, 9, 9)), floats, floats)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert len(np.unique(found.round(3), axis=0)) == 5


def kid(real: np.ndarray, fake: np.ndarray, more: np.ndarray) -> dict[str, float]:
    space = space_of(real.shape[1:])
    rows = [features(space, real, side) for side in (real, fake, more)]
    sides = SimpleNamespace(real_features=rows[0], fake_features=rows[1], more_features=rows[2])
    return random_kid.compute(sides)


@pytest.mark.parametrize("shape", [(2, 64), (1, 12, 12), (1, 8, 8, 8)])
def test_what_differs_is_found_and_what_does_not_is_not(shape):
    """Smooth samples, and noise of the same deviation."""
    axes = tuple(range(-len(shape) + 1, 0))

    def smooth(seed):
        drawn = draws(seed, 80, shape)
        for axis in axes:
            drawn = (drawn + np.roll(drawn, 1, axis)) / np.float32(np.sqrt(2))
        return drawn

    real, more = smooth(0), smooth(1)
    same, other = kid(real, smooth(2), more), kid(real, draws(3, 80, shape), more)
    assert abs(same["kid_random"]) < 3 * same["kid_random_standard_error"]
    assert other["kid_random"] > 5 * other["kid_random_standard_error"]
    assert other["kid_random"] > 5 * abs(other["kid_random_floor"])
