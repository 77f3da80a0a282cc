"""The bound of floats in their own units: standardizing and transforms change nothing but it."""

import math

import numpy as np
import pytest
import torch

from diffuse_cli.core import Conditions, Denoiser, Process, Space
from diffuse_cli.data.samples import measure_space
from diffuse_cli.evaluation.image_sets import LabeledSamples
from diffuse_cli.evaluation.likelihood import iterate_batches, measure_bound
from diffuse_cli.system.events import finish

BARS = torch.linspace(12, -12, 300, dtype=torch.float64).sigmoid()
PROCESS = Process(1 - BARS / torch.cat([torch.ones(1, dtype=torch.float64), BARS[:-1]]))
NORMAL = np.random.default_rng(5).standard_normal((8, 2, 400)).astype(np.float32)


def net(x, t):
    """E[x_0 | x_t] of standard normal data."""
    bars = torch.from_numpy(np.interp(t.numpy(), PROCESS.timesteps.numpy(), BARS.numpy()))
    return x * bars.sqrt().float().reshape(-1, 1, 1)


def bits(stored, transform=None, timesteps="all"):
    """The parts of the bound of stored floats, under the exact denoiser of Gaussians."""
    units = {"mean": (0, 0), "std": (1, 1), "transform": transform}
    count = len(stored)
    space = Space(channels=2, size=(400,), levels=None, **units)
    space = measure_space(space, stored, np.arange(count), [f"{k}" for k in range(count)])
    denoiser = Denoiser(net, PROCESS, "x0", "small", None)
    samples = LabeledSamples(stored, np.full(count, -1))
    inputs = samples, Conditions(), range(count), None, 100, torch.device("cpu")
    batches = iterate_batches(*inputs)
    work = measure_bound(denoiser, batches, range(count), space, timesteps=timesteps, seed=0)
    return finish(work).parts()


def entropy(std):
    """Bits per dimension of Gaussian numbers."""
    return math.log2(2 * math.pi * math.e) / 2 + float(np.log2(std).mean())


SNRS = BARS / (1 - BARS)
TERMS = ((SNRS[:-1] - SNRS[1:]) * (1 - BARS[1:])).sum() / 2
GAP = float(TERMS / math.log(2) + (1 - BARS[0]).log2() / 2)
"""What the bound is above the entropy: its terms are (SNR_s - SNR_t) / 2 Var(x_0 | x_t) (Kingma et
al. 2021, eq. 13), and the decoder has the variance of the first step."""

STD = np.array([3.0, 0.01])[:, None]


def test_gaussian_numbers_cost_their_entropy_in_their_own_units():
    exact = (entropy(3) + entropy(0.01)) / 2
    found = bits((NORMAL * STD + [[100.0], [-1.0]]).astype(np.float32))
    assert 0.2 < GAP < 0.4
    assert found.sum(1).mean() == pytest.approx(exact + GAP, abs=0.02)
    assert found[:, 0].mean() < 1e-3


def test_a_scale_adds_its_logarithm_and_a_shift_nothing():
    own = bits(NORMAL)
    for scale, shift in ((1000.0, 0.0), (1e-3, 5e-3)):
        found = bits((NORMAL * scale + shift).astype(np.float32))
        assert (found.sum(1) - own.sum(1)) == pytest.approx(math.log2(scale), abs=2e-3)
        assert np.allclose(found[:, :2], own[:, :2], atol=1e-3), "all of it in the decoder"


def test_the_jacobian_of_a_transform_is_in_the_bound():
    """x = exp(y): h(x) = h(y) + E[y] / ln 2. x = sinh(y): h(x) = h(y) + E[log2 cosh y]."""
    y = (NORMAL * 0.5 + 1).astype(np.float64)
    for transform, stored, slope in (
        ("log", np.exp(y), y / math.log(2)), ("asinh", np.sinh(y), np.log2(np.cosh(y))),
    ):  # fmt: skip
        found = bits(stored.astype(np.float32), transform).sum(1).mean()
        assert found == pytest.approx(entropy(0.5) + slope.mean() + GAP, abs=0.02)


@pytest.mark.parametrize("timesteps", [2, 12, 40])
def test_a_few_visits_have_the_whole_jacobian(timesteps):
    own = bits(NORMAL, timesteps=timesteps)
    scaled = bits(NORMAL * np.float32(1024), timesteps=timesteps)
    assert (scaled.sum(1) - own.sum(1)) == pytest.approx(10, abs=1e-3)
