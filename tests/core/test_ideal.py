"""A data set of a few images, whose best prediction is known: a softmax over the data."""

from functools import cache

import pytest
import torch
from covering_array import covering
from oracles import generator, ideal_net, last, process_of

from diffuse_cli.core import SAMPLERS, SCHEDULES, VARIANCES, Denoiser, bits_per_dim
from diffuse_cli.core.parameterization import LEARNED, MEASURED

T = 50
IMAGES = torch.randint(0, 256, (5, 1, 4, 4), generator=generator(11)).double() / 127.5 - 1


def sampled(name, schedule, n):
    """How far each of 100 samples is from each image, in its worst pixel."""
    process = process_of(schedule, 1000)
    denoiser = Denoiser(ideal_net(process, IMAGES), process, "x0")
    draws = torch.randn(n + 1, 100, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    times = process.times(n, "karras")
    found = last(SAMPLERS[name](denoiser, process, draws[n], times, noise=lambda k: draws[k]))
    return (found[:, None] - IMAGES).abs().flatten(2).amax(2)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_sampler_returns_the_images(name, schedule):
    distance = sampled(name, schedule, 40)
    assert float(distance.min(1).values.max()) < 0.5 / 127.5
    counts = torch.bincount(distance.argmin(1), minlength=5)
    assert bool(((counts - 20).abs() < 16).all())  # four standard deviations
    if schedule == "cosine":
        assert float(sampled(name, schedule, 20).min(1).values.max()) < 1e-6


COMPETITORS = {
    "shrunk": lambda x0: 0.97 * x0,
    "brighter": lambda x0: x0 + 0.02,
    "sharper": lambda x0: 1.03 * x0,
    "noisy": lambda x0: x0 + 0.02 * torch.randn(x0.shape, generator=generator(9)),
    "mean": lambda x0: 0.97 * x0 + 0.03 * IMAGES.mean(0),
}


@cache
def best(schedule, variance):
    """What the ideal network has."""
    process = process_of(schedule, T)
    return bound(process, ideal_net(process, IMAGES), variance)


def bound(process, net, variance):
    """Bits per dimension of the images, over 40 draws of noise for each."""
    x0 = IMAGES.repeat(40, 1, 1, 1)
    draws = torch.randn(T, *x0.shape, generator=generator(6), dtype=torch.float64)
    denoiser = Denoiser(net, process, "x0", variance)
    return float(bits_per_dim(denoiser, x0, noise=lambda t: draws[t]).total.mean())


@pytest.mark.parametrize(
    ("schedule", "variance", "change"),
    covering(SCHEDULES, sorted(set(VARIANCES) - LEARNED - MEASURED), COMPETITORS, strength=2),
)
def test_nothing_has_a_better_bound(schedule, variance, change):
    process = process_of(schedule, T)
    ideal = ideal_net(process, IMAGES)
    changed = COMPETITORS[change]
    worse = bound(process, lambda x, t: changed(ideal(x, t)), variance)
    assert best(schedule, variance) < worse


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_nor_has_a_softmax_of_another_temperature(factor):
    process = process_of("cosine", T)
    net = ideal_net(process, IMAGES, factor)
    assert best("cosine", "small") < bound(process, net, "small")
