"""Consistency: its function is known in closed form for Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import SPREAD, exact_denoiser, generator, last, process_of, zero_snr

from diffuse_cli.core import SAMPLERS, SCHEDULES, Denoiser, Prediction, Process
from diffuse_cli.core.consistency import STAGES, loss, pairing

COSINE = process_of("cosine", 1000)
MEAN = 0.3


def spread_at(process: Process, t: int) -> float:
    """The deviation of x_t for data of deviation SPREAD."""
    bar = process.alpha_bar(t)
    return math.sqrt(bar * SPREAD**2 + 1 - bar)


def consistent(process: Process):
    """f(x_t) = mean + spread (x_t - alpha mean) / sqrt(alpha^2 spread^2 + sigma^2): along a path of
    the probability flow (x_t - alpha mean) over its deviation does not change."""

    def denoise(x_t, t, /, **cond):
        alpha, sigma = process.level(t, like=x_t)
        size = (alpha**2 * SPREAD**2 + sigma**2) ** 0.5
        x0 = MEAN + SPREAD / size * (x_t - alpha * MEAN)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def flow_from(process: Process, x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor):
    """Where the probability flow of the same data leads from x_t."""
    moved = []
    for x, i, j in zip(x_t, t.tolist(), s.tolist(), strict=True):
        alpha, alpha_s = (math.sqrt(process.alpha_bar(k)) for k in (i, j))
        along = (x - alpha * MEAN) / spread_at(process, i)
        moved.append(alpha_s * MEAN + spread_at(process, j) * along)
    return torch.stack(moved)


def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x0 = MEAN + SPREAD * torch.randn(n, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    return x0, torch.randn(x0.shape, generator=generator(2), dtype=torch.float64)


@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("schedule", [*SCHEDULES, "zero SNR"])
def test_the_earlier_time_comes_nearer_with_each_stage(schedule: str, stage: int):
    process = zero_snr() if schedule == "zero SNR" else process_of(schedule, 1000)
    found, times = pairing(process, stage), torch.arange(1000)
    assert bool((found.earlier < times).all())
    assert bool((found.earlier >= -1).all())
    assert bool(found.weight.isfinite().all())
    assert bool((found.weight > 0).all())
    if stage:
        assert bool((found.earlier >= pairing(process, stage - 1).earlier).all())


def test_the_first_stage_compares_with_clean_data_where_there_is_little_noise():
    """1 - n(r) / 2 < 0 where sigmoid(-r) > 1/8, so r < log 7."""
    found = pairing(COSINE, 0)
    r = torch.exp(-COSINE.log_snr(torch.arange(1000)) / 2)
    assert bool((found.earlier[r < math.log(7)] < 0).all())
    assert bool((found.earlier[r > 1.02 * math.log(7)] >= 0).all())


def test_the_weight_is_one_over_the_angle():
    """Under cosine the angle is the time: pi / 2 over 1.008 T of them."""
    found, times = pairing(COSINE, 5), torch.arange(1000)
    inside = (found.earlier >= 100) & (times < 999)
    angle = math.pi / 2 / (1.008 * 1000) * (times - found.earlier)
    assert torch.allclose(found.weight[inside], 1 / angle[inside].double(), rtol=5e-3)


def test_a_consistency_function_has_no_loss_along_a_path():
    """By a teacher whose step is the flow's own, for every pair of times."""
    t = torch.tensor([999, 999, 800, 500, 500, 120, 7, 1])
    s = torch.tensor([998, 0, 300, 499, 20, 119, 3, 0])
    x0, noise = drawn(len(t))
    exact = consistent(COSINE)

    def teacher(x_t, times, /, **cond):
        x_s = flow_from(COSINE, x_t, t, s)
        bars = torch.tensor([COSINE.alpha_bar(k) for k in s.tolist()], dtype=torch.float64)
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (bars.sqrt(), (1 - bars).sqrt()))
        return Prediction(x_s / alpha, torch.zeros_like(x_s) * sigma)

    class Exact(Denoiser):
        def __call__(self, x_t, t, /, **cond):
            return exact(x_t, t)

    denoiser = Exact(lambda x, t: x, COSINE, "v")
    found = loss(denoiser, x0, t, noise, earlier=s, teacher=teacher)
    assert float(found.abs().max()) < 1e-8
    off = loss(denoiser, x0, t, noise, earlier=s)
    assert float(off.min()) > 1e-5  # one noise for both times is no path, except on average


def test_clean_data_is_what_a_pair_without_an_earlier_time_is_compared_with():
    t = torch.tensor([5, 400, 900])
    x0, noise = drawn(3)
    wrong = torch.randn(x0.shape, generator=generator(3), dtype=torch.float64)
    denoiser = Denoiser(lambda x, shown: wrong, COSINE, "x0")
    found = loss(denoiser, x0, t, noise, earlier=torch.full((3,), -1))
    size = (wrong - x0).square().flatten(1).mean(1).sqrt()
    assert torch.allclose(found, size, atol=1e-3)


def test_no_gradient_goes_through_the_earlier_time():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    x0, noise = drawn(1)
    seen = []

    def net(x, shown):
        seen.append(torch.is_grad_enabled())
        return scale * x

    loss(Denoiser(net, COSINE, "v"), x0, torch.tensor([500]), noise).backward()
    assert seen == [True, False]
    assert scale.grad is not None


@pytest.mark.parametrize("num_timesteps", [20, 80])
def test_training_a_linear_network_finds_the_function(num_timesteps: int):
    """f_t(x) = mean + k_t (x - alpha mean), by least squares from one time to the next, noise to
    noise: k_t = k_s (alpha alpha_s spread^2 + sigma sigma_s) / Var x_t, which tends to
    spread / sqrt(Var x_t) as times come closer."""
    process = process_of("cosine", num_timesteps)
    gains = torch.zeros(num_timesteps, dtype=torch.float64, requires_grad=True)
    x0, noise = drawn(4096)
    x0 = x0 - MEAN
    known, before, bar_s = [], 1.0, 1.0
    for t in range(num_timesteps):
        bar = process.alpha_bar(t)
        shared = math.sqrt(bar * bar_s) * SPREAD**2 + math.sqrt((1 - bar) * (1 - bar_s))
        before = before * shared / spread_at(process, t) ** 2
        known.append(before)
        bar_s = bar

    def net(x, shown):
        return gains[(shown * num_timesteps / 1000).round().long()].reshape(-1, 1, 1, 1) * x

    denoiser = Denoiser(net, process, "x0")
    for t in range(num_timesteps):  # each is learned from the one before, by Newton's steps
        for _ in range(4):
            value = loss(denoiser, x0, torch.full((len(x0),), t), noise).square().mean()
            (slope,) = torch.autograd.grad(value, gains, create_graph=True)
            (bend,) = torch.autograd.grad(slope[t], gains)
            with torch.no_grad():
                gains[t] -= slope[t] / bend[t]
    found = gains.detach()
    assert torch.allclose(found, torch.tensor(known, dtype=torch.float64), atol=0.02)
    limit = torch.tensor([SPREAD / spread_at(process, t) for t in range(num_timesteps)])
    worst = float((torch.tensor(known) - limit).abs().max())
    assert worst < 4 / num_timesteps


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_its_sampler_is_exact_at_any_number_of_steps(steps: int):
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
def test_its_loss_in_float32_is_that_in_float64(target: str):
    """But for rounding: near times differ by little."""
    t = torch.arange(1000)
    x0, noise = drawn(len(t))
    denoiser = exact_denoiser(COSINE, target)
    found = loss(denoiser, x0.float(), t, noise.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), loss(denoiser, x0, t, noise), atol=1e-4)
