"""Log densities by the probability-flow equation, of Gaussian data with the exact denoiser."""

import math

import pytest
import torch
from oracles import (
    SPREAD,
    Exact,
    exact_denoiser,
    gaussian_denoise,
    generator,
    mixture_denoise,
    process_of,
    zero_snr,
)

from diffuse_cli.core import TARGETS, Denoiser, Process, log_densities

BARS = torch.linspace(15, -15, 200, dtype=torch.float64).sigmoid()
FULL = Process(1 - BARS / torch.cat([torch.ones(1, dtype=torch.float64), BARS[:-1]]))
"""Noise from so little to so much that both ends of the equation cost nothing."""

NORMAL = torch.randn(6, 2, 3, 4, generator=generator(1), dtype=torch.float64)
DIMS = NORMAL[0].numel()


def signs(like, seed):
    return torch.randn(like.shape, generator=generator(seed)).sign().to(like)


def trace(like):
    """Return probes whose estimate of a divergence is exact: sqrt(d) times each unit vector."""
    size = like[0].numel()
    units = (size**0.5 * torch.eye(size, dtype=like.dtype)).reshape(size, *like.shape[1:])
    return [unit.expand_as(like) for unit in units]


def exact_start(process, x0, spread=SPREAD):
    """Return the log density of x_0 in samples of a sampler that ends at the first timestep."""
    alpha, sigma = process.alpha_sigma(0, like=x0)
    normal = torch.distributions.Normal(0.0, math.hypot(alpha * spread, sigma))
    return (normal.log_prob(alpha * x0) + math.log(alpha)).flatten(1).sum(1)


def density(denoiser, x0, steps, probes=None):
    """Return the log density; by default with one probe of signs."""
    given = [signs(x0, 2)] if probes is None else probes
    *_, last = log_densities(denoiser, x0, steps=steps, probes=given)
    return last


# -- independent numbers: every probe of signs gives the exact divergence -------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "zero"])
def test_gaussian_numbers_have_their_density(schedule, target):
    """Also where the last timestep has no signal, which `eps` does not allow."""
    process = zero_snr() if schedule == "zero" else process_of(schedule, 1000)
    target = "x0" if target == "eps" and process.alpha_bars[-1] == 0 else target
    x0 = SPREAD * NORMAL
    exact = torch.distributions.Normal(0.0, SPREAD).log_prob(x0).flatten(1).sum(1)
    found = density(exact_denoiser(process, target), x0, 200)
    assert ((found - exact) / DIMS).abs().max() < 2e-4
    single = density(exact_denoiser(process, target), x0.float(), 200)
    assert single.dtype == torch.float32
    assert ((single - found) / DIMS).abs().max() < 1e-4


def test_normal_numbers_have_their_entropy_in_one_step():
    """Where the data is the prior, the velocity is 0: 2.047096 bits per dimension."""
    x0 = NORMAL / NORMAL.square().mean().sqrt()
    size = torch.eye(DIMS, dtype=torch.float64)
    found = density(Exact(FULL, gaussian_denoise(FULL, 0 * size[0], size)), x0, 1)
    assert -found.mean() / DIMS / math.log(2) == pytest.approx(2.047096, abs=1e-6)


def test_the_order_is_two():
    process = process_of("cosine", 1000)
    exact, denoiser = exact_start(process, SPREAD * NORMAL), exact_denoiser(process, "v")
    off = [float((density(denoiser, SPREAD * NORMAL, n) - exact).mean()) for n in (50, 100, 200)]
    assert off[0] / off[1] == pytest.approx(4, rel=0.15)
    assert off[1] / off[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(("spread", "gap"), [(0.05, 4e-4), (0.04, 9.8e-4)])
def test_the_start_costs_what_the_docstring_says(spread, gap):
    """(r / s)^4 / 4 nats per dimension on average, with r = 0.01 under linear 1000."""
    process = process_of("linear", 1000)
    x0 = spread * NORMAL / NORMAL.square().mean().sqrt()
    size = spread**2 * torch.eye(DIMS, dtype=torch.float64)
    denoise = gaussian_denoise(process, torch.zeros(DIMS, dtype=torch.float64), size)
    entropy = math.log(2 * math.pi * math.e) / 2 + math.log(spread)
    found = -float(density(Exact(process, denoise), x0, 800).mean()) / DIMS
    assert gap == pytest.approx((0.01 / spread) ** 4 / 4, rel=0.02)
    assert found - entropy == pytest.approx(gap, rel=0.1)


def test_a_mixture_has_its_density():
    """Not linear, so every step counts."""
    x0 = 0.8 * NORMAL
    found = density(Exact(FULL, mixture_denoise(FULL)), x0, 400)
    means, spreads = torch.tensor([-0.6, 0.5]).double(), torch.tensor([0.25, 0.35]).double()
    parts = torch.distributions.Normal(means, spreads).log_prob(x0[..., None])
    exact = (parts + torch.tensor([0.4, 0.6]).double().log()).logsumexp(-1).flatten(1).sum(1)
    assert ((found - exact) / DIMS).abs().max() < 1e-3


# -- correlated numbers: Hutchinson's estimate ----------------------------------------------------

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
CORRELATED = Exact(FULL, gaussian_denoise(FULL, MEAN, COVARIANCE))
DRAWN = torch.randn(400, 2, generator=generator(3), dtype=torch.float64)
POINTS = (MEAN + DRAWN @ torch.linalg.cholesky(COVARIANCE).T)[..., None]
EXACT = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(POINTS[..., 0])


def test_the_full_trace_is_exact_and_hutchinsons_estimate_has_no_bias():
    found = density(CORRELATED, POINTS, 400, trace(POINTS))
    assert (found - EXACT).abs().max() < 1e-3
    probes = [signs(POINTS, k) for k in range(10)]
    alone = torch.stack([density(CORRELATED, POINTS, 100, [probe]) for probe in probes])
    off = alone - density(CORRELATED, POINTS, 100, trace(POINTS))
    error = float(off.std()) / off.numel() ** 0.5
    assert error > 0.005
    assert abs(float(off.mean())) < 3 * error
    assert torch.allclose(density(CORRELATED, POINTS, 100, probes), alone.mean(0))


# -- networks -------------------------------------------------------------------------------------


def test_conditions_reach_the_network_and_nothing_is_kept():
    seen = []

    def net(x, t, **cond):
        seen.append((x.requires_grad, float(t[0]), cond))
        return 0.5 * x

    label = torch.arange(6)
    states = log_densities(Denoiser(net, FULL, "v"), NORMAL, steps=3, probes=[NORMAL], label=label)
    assert not any(state.requires_grad for state in states)
    assert [needs for needs, _, _ in seen] == [False, True] * 3
    assert [t for _, t, _ in seen] == sorted(t for _, t, _ in seen)
    assert seen[0][1] == pytest.approx(0, abs=1e-9)
    assert all(cond == {"label": label} for _, _, cond in seen)


def test_a_process_of_one_timestep_is_its_prior():
    process = Process([0.5])
    found = density(Denoiser(lambda x, t: x, process, "v"), NORMAL, 2)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(0.5**0.5 * NORMAL) + math.log(0.5) / 2
    assert torch.allclose(found, exact.flatten(1).sum(1))
