"""Targets as two coefficients."""

import math

import pytest
from oracles import posterior_coefficients, process_of

from diffuse_cli.core import TARGETS

PROCESS = process_of("cosine", 50)
TIMES = [0, 1, 25, 49]


def coefficients(name, t):
    alpha, sigma = PROCESS.alpha_sigma(t, like=PROCESS.betas)
    c1, c2 = posterior_coefficients(PROCESS, t)
    a, b = TARGETS[name](alpha, sigma, c1, c2)
    return a, b, alpha, sigma, c1, c2


@pytest.mark.parametrize("t", TIMES)
def test_the_coefficients_are_those_of_the_papers(t):
    expected = {
        "eps": lambda alpha, sigma, c1, c2: (0, 1),
        "x0": lambda alpha, sigma, c1, c2: (1, 0),
        "v": lambda alpha, sigma, c1, c2: (-sigma, alpha),
        "flow": lambda alpha, sigma, c1, c2: (-1, 1),
        "mu": lambda alpha, sigma, c1, c2: (c1 + c2 * alpha, c2 * sigma),
    }
    for name, formula in expected.items():
        a, b, *rest = coefficients(name, t)
        assert (a, b) == pytest.approx(formula(*rest)), name


@pytest.mark.parametrize("t", TIMES)
def test_mu_is_the_posterior_mean_of_ho_et_al(t):
    """mu = (x_t - beta_t / sigma_t eps) / sqrt(1 - beta_t), equation 11."""
    a, b, alpha, sigma, *_ = coefficients("mu", t)
    beta = float(PROCESS.betas[t])
    x0, eps = 0.3, -1.7
    x_t = alpha * x0 + sigma * eps
    assert a * x0 + b * eps == pytest.approx((x_t - beta / sigma * eps) / math.sqrt(1 - beta))
