"""The reverse process's variance, as its logarithm."""

import math

import pytest
import torch
from oracles import process_of, said

from diffuse_cli.core import VARIANCES, Denoiser

LIKE = torch.zeros(1, 1, 1, 1, dtype=torch.float64)


def log_var(name, process, t, s=None):
    found = VARIANCES[name](process.coefficients(t, s, like=LIKE), said(name, LIKE))
    return float(found)


def test_small_is_beta_tilde_and_large_is_beta():
    process = process_of("linear", 1000)
    betas, bars = process.betas, process.alpha_bars
    for t in (1, 2, 500, 999):
        beta_tilde = float(betas[t] * (1 - bars[t - 1]) / (1 - bars[t]))
        assert log_var("small", process, t) == pytest.approx(math.log(beta_tilde), abs=1e-10)
        assert log_var("large", process, t) == pytest.approx(math.log(betas[t]), abs=1e-10)


@pytest.mark.parametrize("name", ["small", "large", "optimal"])
def test_at_the_first_timestep_it_is_the_second_timesteps_beta_tilde(name):
    process = process_of("linear", 1000)
    assert log_var(name, process, 0) == pytest.approx(-9.8167251353, abs=1e-10)
    assert log_var(name, process, 0, -1) == pytest.approx(-9.8167251353, abs=1e-10)
    assert log_var(name, process, torch.tensor([0])) == pytest.approx(-9.8167251353)


@pytest.mark.parametrize(
    ("t", "expected"),
    [(0, -9.5135327536), (1, -9.4227057536), (500, -4.5996209172), (999, -3.9120234173)],
)
def test_a_learned_variance_lies_between_the_fixed_ones(t, expected):
    """0 is half way between log beta and log beta-tilde, -1 is the one end and 1 the other."""
    pair = process_of("linear", 1000).coefficients(t, like=LIKE)
    lower, middle, upper = (float(VARIANCES["learned"](pair, LIKE + v)) for v in (-1, 0, 1))
    assert middle == pytest.approx(expected, abs=1e-10)
    assert lower == pytest.approx(pair.log_beta_tilde, abs=1e-12)
    assert upper == pytest.approx(pair.log_beta, abs=1e-12)
    assert float(VARIANCES["learned"](pair, LIKE + 3)) == pytest.approx(
        2 * upper - lower, abs=1e-12
    )


def test_a_learned_variance_differs_by_pixel():
    process = process_of("cosine", 50)
    said_here = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    denoiser = Denoiser(lambda x, t: torch.cat([x, said_here], 1), process, "x0", "learned")
    t = torch.tensor([20, 3])
    found = denoiser(x, t).log_var(t)
    assert found.shape == x.shape
    for i, time in enumerate(t.tolist()):
        pair = process.coefficients(time, like=x)
        f = (said_here[i] + 1) / 2
        expected = f * pair.log_beta + (1 - f) * pair.log_beta_tilde
        assert torch.allclose(found[i], expected, rtol=1e-10)


@pytest.mark.parametrize(("steps", "closed"), [(10, 0.79), (30, 0.85), (100, 0.93)])
def test_the_best_variance_of_a_pixel_closes_most_of_the_gap(steps, closed):
    """Of the bound under `small` to the 1 bit of a black or white pixel, by numerical integrals.

    With the exact mean the best variance at x_t is beta-tilde + c1^2 Var(x_0 | x_t).
    """
    process = process_of("cosine", steps)
    eps = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = torch.softmax(-(eps**2) / 2, 0)
    small = best = 0.0
    for t in range(1, steps):
        alpha, sigma = process.alpha_sigma(t, like=eps)
        mean = torch.tanh(alpha * (alpha + sigma * eps) / sigma**2)
        pair = process.coefficients(t, like=eps)
        more = pair.c1**2 * (1 - mean**2) / math.exp(pair.log_beta_tilde)
        small += float(density @ more) / 2 / math.log(2)
        best += float(density @ more.log1p()) / 2 / math.log(2)
    assert 1 < best < small
    assert (small - best) / (small - 1) == pytest.approx(closed, abs=0.006)
