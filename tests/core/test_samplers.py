"""Samplers against the closed recursion of Gaussian data.

With the exact denoiser of Gaussian data a sampler is linear in its start and its draws, so one
batch tells the whole output distribution: one image starts at 1 without noise, and one image for
each step has noise 1 in that step alone.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from oracles import exact_denoise, exact_denoiser, generator, last, process_of, zero_snr

from diffuse_cli.core import SAMPLERS, VARIANCES

LINEAR = process_of("linear", 1000)


def spread_of(name: str, times: list, variance: str = "small", process=LINEAR, **knobs) -> float:
    """The standard deviation of what a sampler makes from N(0, 1)."""
    n = len(times)
    x = torch.zeros(n + 1, 1, 1, 1, dtype=torch.float64)
    x[n] = 1
    unit = torch.eye(n + 1, dtype=torch.float64)

    def noise(k: int) -> torch.Tensor:
        return unit[k].reshape(-1, 1, 1, 1)

    denoise = exact_denoise(process, variance)
    return float(last(SAMPLERS[name](denoise, process, x, times, noise=noise, **knobs)).norm())


@pytest.mark.parametrize(("variance", "std"), [("small", 0.4961100799), ("large", 0.5007515102)])
def test_ancestral_sampling_has_the_exact_spread(variance: str, std: float):
    assert spread_of("ddpm", LINEAR.times(1000), variance) == pytest.approx(std, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "spacing", "eta", "std"),
    [
        (10, "trailing", 0.0, 0.3699548091),
        (20, "trailing", 0.0, 0.4313675262),
        (50, "trailing", 0.0, 0.4714026732),
        (10, "leading", 0.0, 0.3741284938),
        (10, "trailing", 1.0, 0.3334750621),
    ],
)
def test_ddim_has_the_exact_spread(n: int, spacing: str, eta: float, std: float):
    times = LINEAR.times(n, spacing)
    assert spread_of("ddim", times, eta=eta) == pytest.approx(std, abs=1e-9)


def test_ddim_is_deterministic_by_default_and_asks_for_no_noise():
    def noise(k):
        raise AssertionError("asked for noise")

    times = LINEAR.times(10)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    last(SAMPLERS["ddim"](exact_denoise(LINEAR), LINEAR, x, times, noise=noise))
    assert spread_of("ddim", times) == spread_of("ddim", times, eta=0.0)


def test_ddim_at_eta_one_is_ancestral_sampling():
    """The marginal of x_s given x_t and x_0 is the posterior."""
    times = LINEAR.times(50)
    assert spread_of("ddim", times, eta=1.0) == pytest.approx(spread_of("ddpm", times), rel=1e-9)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_more_steps_come_nearer_to_the_data(name: str):
    errors = [abs(spread_of(name, LINEAR.times(n)) - 0.5) for n in (10, 50, 250)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sampler_yields_a_state_after_each_step(name: str):
    process = process_of("cosine", 50)
    times = process.times(7)
    start = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    asked = []

    def noise(k: int) -> torch.Tensor:
        asked.append(k)
        return torch.zeros_like(start)

    denoise = exact_denoise(process)
    states = SAMPLERS[name](denoise, process, start, times, noise=noise)
    assert inspect.isgenerator(states)
    states = list(states)
    assert [s.t for s in states] == [*times[1:], -1]
    assert all(s.x.shape == s.x0.shape == start.shape for s in states)
    assert torch.allclose(states[-1].x, states[-1].x0)
    assert all(0 <= k < len(times) for k in asked)
    assert asked == sorted(set(asked))
    assert torch.equal(start, torch.ones_like(start))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sampler_stops_where_its_caller_stops(name: str):
    process = process_of("cosine", 50)
    calls = []
    exact = exact_denoise(process)

    def denoise(x, t, **cond):
        calls.append(t)
        return exact(x, t)

    x = torch.ones(1, 1, 1, 1)
    next(SAMPLERS[name](denoise, process, x, process.times(10), noise=lambda k: x))
    assert calls == [49]


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("times", [[0], [999], [999, 0], [500, 17, 3]], ids=str)
def test_any_falling_times_are_sampled(name: str, times: list):
    assert math.isfinite(spread_of(name, times))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_real_times_are_sampled_too(name: str):
    times = LINEAR.times(20)
    assert spread_of(name, [float(t) for t in times]) == pytest.approx(
        spread_of(name, times), rel=1e-12
    )
    errors = [abs(spread_of(name, LINEAR.times(n, "karras")) - 0.5) for n in (20, 80)]
    assert errors[1] < errors[0] < 0.2


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("variance", list(VARIANCES))
def test_sampling_from_zero_snr(name: str, variance: str):
    process = zero_snr(1000)
    denoise = exact_denoiser(process, "v", variance)
    x = torch.randn(4, 1, 2, 2, generator=generator(), dtype=torch.float64)
    states = SAMPLERS[name](denoise, process, x, process.times(20), noise=lambda k: 0 * x)
    assert bool(last(states).isfinite().all())


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_respaced_process_gives_the_same_images(name: str):
    full = process_of("cosine", 50)
    times = full.times(10)
    denoiser = exact_denoiser(full, "v", "large")
    respaced = denoiser.respaced(times)
    draws = torch.randn(11, 3, 1, 2, 2, generator=generator(), dtype=torch.float64)

    def sample(denoiser, times):
        sampler = SAMPLERS[name]
        return last(sampler(denoiser, denoiser.process, draws[10], times, noise=lambda k: draws[k]))

    ours = sample(respaced, list(range(9, -1, -1)))
    assert torch.allclose(ours, sample(denoiser, times), rtol=1e-9)
