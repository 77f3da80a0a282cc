"""The reverse process's variance, as its logarithm."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import process_of

from diffuse_cli.core import VARIANCES, Denoiser

LIKE = torch.zeros(1, 1, 1, 1, dtype=torch.float64)


def log_var(name: str, process, t, s=None):
    return VARIANCES[name](process.pair(t, s, like=LIKE), None)


def test_small_is_beta_tilde_and_large_is_beta():
    process = process_of("linear", 1000)
    betas, bars = process.betas, process.alpha_bars
    for t in (1, 2, 500, 999):
        beta_tilde = float(betas[t] * (1 - bars[t - 1]) / (1 - bars[t]))
        assert log_var("small", process, t) == pytest.approx(math.log(beta_tilde), abs=1e-10)
        assert log_var("large", process, t) == pytest.approx(math.log(betas[t]), abs=1e-10)


@pytest.mark.parametrize("name", list(VARIANCES))
def test_at_the_first_timestep_it_is_the_second_timesteps_beta_tilde(name: str):
    process = process_of("linear", 1000)
    assert log_var(name, process, 0) == pytest.approx(-9.8167251353, abs=1e-10)
    assert log_var(name, process, 0, -1) == pytest.approx(-9.8167251353, abs=1e-10)
    assert float(log_var(name, process, torch.tensor([0]))) == pytest.approx(-9.8167251353)


@pytest.mark.parametrize(
    ("t", "expected"),
    [(0, -9.5135327536), (1, -9.4227057536), (500, -4.5996209172), (999, -3.9120234173)],
)
def test_the_two_ends_of_a_learned_variance(t: int, expected: float):
    """Half way between log beta and log beta-tilde, which a learned variance starts from."""
    pair = process_of("linear", 1000).pair(t, like=LIKE)
    assert (pair.log_beta + pair.log_beta_tilde) / 2 == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", list(VARIANCES))
def test_after_respacing_it_follows_the_respaced_betas(name: str):
    full = process_of("cosine", 50)
    times = sorted(full.times(10))
    respaced = full.respaced(times)
    for i in range(1, 10):
        expected = log_var(name, full, times[i], times[i - 1])
        assert log_var(name, respaced, i) == pytest.approx(expected, abs=1e-10)
    assert log_var(name, respaced, 0) == pytest.approx(log_var("small", respaced, 1))


@pytest.mark.parametrize("name", list(VARIANCES))
def test_a_denoiser_hands_it_on(name: str):
    process = process_of("cosine", 50)
    prediction = Denoiser(lambda x, t: x, process, "x0", name)(LIKE, 20)
    assert prediction.log_var(20, None) == log_var(name, process, 20)
    assert prediction.log_var(20, 3) == log_var(name, process, 20, 3)
