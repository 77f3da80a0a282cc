"""Consistency: its function is known in closed form for Gaussian data."""

import math
from functools import partial

import pytest
import torch
from oracles import (
    SPREAD,
    Exact,
    around,
    exact_denoise,
    exact_denoiser,
    generator,
    last,
    process_of,
)

from diffuse_cli.core import SAMPLERS, Denoiser, Prediction, distillation
from diffuse_cli.core.distillation import FINE, FIRST, POINTS, consistency_loss, solve_trajectory

COSINE = process_of("cosine", 1000)
MEAN = 0.3


def consistent(process):
    """f(x_t) = mean + spread (x_t - alpha mean) / sqrt(alpha^2 spread^2 + sigma^2): along a path of
    the probability flow (x_t - alpha mean) over its deviation does not change."""

    def denoise(x_t, t, /, **cond):
        alpha, sigma = process.alpha_sigma(t, like=x_t)
        size = (alpha**2 * SPREAD**2 + sigma**2) ** 0.5
        x0 = MEAN + SPREAD / size * (x_t - alpha * MEAN)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


expecting = partial(around, mean=MEAN)
"""E[x_0 | x_t] of the same data."""


def drawn(n):
    x0 = MEAN + SPREAD * torch.randn(n, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    return x0, torch.randn(x0.shape, generator=generator(2), dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
def test_the_path_ends_where_the_flow_does(schedule):
    """By the exact denoiser, to the solver's error, which falls with the steps."""
    process = process_of(schedule, 1000)
    _, noise = drawn(64)
    for fine, within in [(2, 0.5), (4, 0.15), (16, 0.01), (32, 0.003)]:
        found = solve_trajectory(expecting(process), process, noise, fine=[fine] * POINTS)
        assert found.x.shape == (POINTS, *noise.shape)
        assert found.times == tuple(process.times(POINTS))
        ends = consistent(process)(noise, found.times[0]).x0
        assert float((found.end - ends).abs().max()) < within


@pytest.mark.parametrize(("schedule", "least"), [("cosine", 0.8), ("linear", 0.55), ("flow", 0.88)])
def test_the_path_keeps_detail_and_what_is_wider_than_a_pixel(schedule, least):
    """With (4, 2, 1, 2) steps it kept 0.68, 0.42 and 0.78 of a component of spread 0.2."""
    process = process_of(schedule, 1000)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for spread in (0.2, 0.5, 1, 2, 4, 8):
        end = solve_trajectory(exact_denoise(process, spread=spread), process, one).end
        assert least < float(end) / spread < 1.12


@pytest.fixture
def exact(monkeypatch):
    """Paths of many more steps, nearly free of the solver's error."""
    monkeypatch.setattr(
        distillation, "solve_trajectory", partial(solve_trajectory, fine=[16] * POINTS)
    )


def test_a_consistency_function_has_no_loss(exact):
    """At any point of any path, but for the solver; a denoiser has."""
    x0, noise = drawn(32)
    t = torch.zeros(32, dtype=torch.long)
    teacher = expecting(COSINE)
    known, others = (
        consistency_loss(Exact(COSINE, denoise), x0, t, noise, teacher=teacher)
        for denoise in (consistent(COSINE), teacher)
    )
    assert float(known.max()) < 0.002
    assert float(others.min()) > 0.1


def test_the_loss_is_the_distance_over_sigma():
    t = torch.tensor([5, 400, 900])
    x0, noise = drawn(3)
    wrong = torch.randn(1, *x0.shape[1:], generator=generator(3), dtype=torch.float64)
    denoiser = Denoiser(lambda x, shown: wrong.expand_as(x), COSINE, "x0")
    teacher = expecting(COSINE)
    found = consistency_loss(denoiser, x0, t, noise, teacher=teacher)
    known = solve_trajectory(teacher, COSINE, noise)
    away = (known.end - wrong).abs().flatten(1).mean(1)
    each = [(1 - COSINE.alpha_bar(s)) ** -0.5 for s in known.times]
    over = (sum(each) + (FIRST - 1) * each[0]) / (POINTS + FIRST - 1)
    assert torch.allclose(found, away * over)
    twice = consistency_loss(denoiser, x0, t, noise, torch.full((3,), 2.0), teacher=teacher)
    assert torch.allclose(twice, 2 * found)


def test_no_gradient_goes_through_the_path_and_each_sample_is_told_its_own():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (x0, noise), seen = drawn(2), []

    def net(x, shown, label):
        seen.append((torch.is_grad_enabled(), label.tolist()))
        return scale * x

    t, label = torch.tensor([500, 2]), torch.tensor([3, 1])
    consistency_loss(Denoiser(net, COSINE, "v"), x0, t, noise, label=label).sum().backward()
    assert seen == [(False, [3, 1])] * sum(FINE) + [(True, [3, 1] * POINTS)]
    assert scale.grad is not None


def test_a_process_of_fewer_times_has_fewer_points():
    x0, noise = drawn(2)
    for count, times in (6, process_of("cosine", 6).times(POINTS)), (3, [2, 1, 0]):
        process = process_of("cosine", count)
        assert [*solve_trajectory(expecting(process), process, noise).times] == times
    denoiser = Denoiser(lambda x, shown: x, process, "v")
    assert consistency_loss(denoiser, x0, torch.tensor([1, 1]), noise).shape == (2,)


def test_training_a_linear_network_finds_the_function(exact):
    """f(x_t) = mean + spread (x_t - alpha mean) / deviation of x_t, by least squares over paths of
    the exact denoiser."""
    gains = torch.zeros(1001, dtype=torch.float64, requires_grad=True)
    shifts = torch.zeros(1001, dtype=torch.float64, requires_grad=True)

    def net(x, shown):
        k = shown.round().long()
        return gains[k].reshape(-1, 1, 1, 1) * x + shifts[k].reshape(-1, 1, 1, 1)

    denoiser, teacher = Denoiser(net, COSINE, "x0"), expecting(COSINE)
    optimizer = torch.optim.LBFGS([gains, shifts], max_iter=60, line_search_fn="strong_wolfe")
    x0, noise = drawn(128)
    t = torch.zeros(len(x0), dtype=torch.long)

    def value():
        optimizer.zero_grad()
        found = consistency_loss(denoiser, x0, t, noise, teacher=teacher).square().mean()
        found.backward()
        return found

    optimizer.step(value)
    for s in COSINE.times(POINTS):
        k, bar = round(float(COSINE.timesteps[s])), COSINE.alpha_bar(s)
        gain = SPREAD / math.sqrt(bar * SPREAD**2 + 1 - bar)
        assert gains[k].item() == pytest.approx(gain, abs=0.02)
        shift = MEAN * (1 - gain * math.sqrt(bar))
        assert shifts[k].item() == pytest.approx(shift, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_its_sampler_is_exact_at_any_number_of_steps(steps):
    """The spread of what it makes from N(0, 1) is the data's, to the prior's own error."""
    times = COSINE.times(steps)
    unit = torch.eye(steps + 1, dtype=torch.float64)
    x = unit[steps].reshape(-1, 1, 1, 1)
    shifted = torch.zeros_like(x)
    exact = consistent(COSINE)

    def run(x, noise):
        return last(SAMPLERS["consistency"](exact, COSINE, x, times, noise=noise))

    base = run(shifted, lambda k: shifted)
    made = run(x, lambda k: unit[k].reshape(-1, 1, 1, 1)) - base
    assert float(made.norm()) == pytest.approx(SPREAD, rel=1e-4)
    assert torch.allclose(base, torch.full_like(base, MEAN), atol=1e-4)


@pytest.mark.parametrize("target", ["v", "x0", "flow"])
def test_its_loss_in_float32_is_that_in_float64(target):
    """But for rounding."""
    x0, noise = drawn(50)
    t = torch.zeros(50, dtype=torch.long)
    denoiser = exact_denoiser(COSINE, target)
    found = consistency_loss(denoiser, x0.float(), t, noise.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), consistency_loss(denoiser, x0, t, noise), atol=1e-4)
