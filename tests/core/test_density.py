"""The bound of floats is one on a density: on Gaussian data it meets the exact entropy."""

import math

import pytest
import torch
from oracles import generator, process_of

from diffuse_cli.core import SCHEDULES, Denoiser, Gaussian, Process, bits_per_dim

ENTROPY = math.log2(2 * math.pi * math.e) / 2
"""Bits of a standard normal number."""

X0 = torch.randn(60, 1, 4, generator=generator(1), dtype=torch.float64)
X0 = (X0 - X0.mean()) / X0.std(correction=0)


def even(count, most=12.0):
    """A process whose log-SNR falls evenly from `most` to its negative."""
    bars = torch.linspace(most, -most, count, dtype=torch.float64).sigmoid()
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    return Process(1 - bars / before)


def gaussian(process, variance="small"):
    """The exact denoiser of standard normal data: E[x_0 | x_t] = alpha_t x_t."""

    def net(x, t):
        times = [int((process.timesteps - one).abs().argmin()) for one in t.unique().tolist()]
        (time,) = times
        alpha = process.alpha_sigma(time, like=x)[0]
        return alpha * x

    return Denoiser(net, process, "x0", variance, None)


def bound(process, variance="small"):
    """The mean bound. Its terms are quadratic in x_0 and the noise, which has unit variance and no
    correlation with x_0, exactly: the mean over the 240 numbers is the expectation."""
    draw = generator(2)

    def noise(t):
        eps = torch.randn(X0.shape, generator=draw, dtype=torch.float64)
        eps = eps - eps.mean()
        eps = eps - (eps * X0).mean() * X0
        return eps / eps.std(correction=0)

    return float(bits_per_dim(gaussian(process, variance), X0, noise=noise).total.mean())


def test_the_bound_meets_the_entropy_as_timesteps_grow():
    gaps = [bound(even(count)) - ENTROPY for count in (100, 400, 1600)]
    assert gaps[0] / 4 == pytest.approx(gaps[1], rel=0.15), "in proportion to 1 / T"
    assert gaps[1] / 4 == pytest.approx(gaps[2], rel=0.05)
    assert 0 < gaps[2] < 0.07


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
@pytest.mark.parametrize("timesteps", [20, 200])
def test_the_variance_of_normal_data_gives_the_entropy_at_any_number_of_timesteps(
    schedule, timesteps
):
    """With `large` the reverse process is that of the data, and only the prior is left."""
    process = process_of(schedule, timesteps)
    alpha = math.sqrt(process.alpha_bar(timesteps - 2 if schedule == "flow" else timesteps - 1))
    assert bound(process, "large") - ENTROPY == pytest.approx(0, abs=2 * alpha**2 + 1e-6)
    assert bound(process, "small") > ENTROPY + 0.1


@pytest.mark.parametrize(
    ("schedule", "limit"),
    [("linear", 1), ("quadratic", 1), ("constant", 1), ("cosine", 1), ("sigmoid", 1), ("flow", 2)],
)
def test_first_steps_shrink_to_log_2(schedule, limit):
    """In log-SNR, for any number of timesteps; of `flow`, whose noise grows as t squared, twice."""
    processes = [process_of(schedule, count) for count in (100, 1000, 10_000)]
    steps = [float(process.log_snr(0) - process.log_snr(1)) for process in processes]
    assert steps[0] > steps[1] > steps[2] > limit * math.log(2)
    assert steps[2] == pytest.approx(limit * math.log(2), rel=0.02)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_decoder_has_the_variance_of_the_first_step(schedule, variance):
    process = process_of(schedule, 100)
    log_var = gaussian(process, variance)(X0[:2], 0).log_var
    assert log_var is not None
    assert float(log_var(0)) == pytest.approx(math.log(process.betas[0]))
    pair = process.coefficients(5, like=X0)
    known = {"small": pair.log_beta_tilde, "large": pair.log_beta}[variance]
    for found in (log_var(5), log_var(torch.tensor([5, 0]))[0]):
        assert float(found) == pytest.approx(float(known))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("std", [5e-3, 1e-3])
def test_sixteen_bits_in_single_precision(std, kind):
    """The bins of 65,536 levels are 3e-5 wide: what rounding, and the approximation of the normal
    distribution, do to the mean of the logarithms of their probabilities."""
    levels = 65_536
    x = torch.randint(0, levels, (200_000,), generator=generator(3)).double() * 2 / (levels - 1) - 1
    mean = x + 1.2 * std * torch.randn(x.shape, generator=generator(4), dtype=torch.float64)
    normal, half = torch.distributions.Normal(mean, std), 1 / (levels - 1)
    upper = torch.where(x > 1 - half, 1.0, normal.cdf(x + half))
    lower = torch.where(x < half - 1, 0.0, normal.cdf(x - half))
    exact = -(upper - lower).log2().mean()
    model = Gaussian(mean.to(kind), 2 * math.log(std))
    found = model.discrete_nll(x.to(kind), levels=levels).double().mean() / math.log(2)
    assert float(found) == pytest.approx(float(exact), abs=0.006)
    bins = math.log2(std / (2 * half)) + ENTROPY + (1.2**2 - 1) / 2 / math.log(2)
    assert float(exact) == pytest.approx(bins, abs=0.01)
