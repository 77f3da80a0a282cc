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


def test_a_learned_variance_is_between_the_fixed_ones_or_beyond_pixel_by_pixel():
    process = process_of("cosine", 50)
    said_here = torch.linspace(-1, 3, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    denoiser = Denoiser(lambda x, t: torch.cat([x, said_here], 1), process, "x0", "learned")
    t = torch.tensor([20, 0])
    found = denoiser(x, t).log_var(t)
    assert found.shape == x.shape
    for i, time in enumerate(t.tolist()):
        pair = process.coefficients(time, like=x)
        f = (said_here[i] + 1) / 2
        expected = f * pair.log_beta + (1 - f) * pair.log_beta_tilde
        assert torch.allclose(found[i], expected, rtol=1e-10)
