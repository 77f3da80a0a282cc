"""How fast solvers come to the exact answer, as steps grow: their observed orders.

The data is a mixture, so that nothing is linear. Noise falls from sigma / alpha = 80 to 0.1 on a
rho-7 grid, before the last step, which is of first order by nature.
"""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from oracles import mixture_denoise, rho_7, sigma_process

from diffuse_cli.core import SAMPLERS

HIGH, LOW = 80.0, 0.1
START = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64).reshape(-1, 1, 1, 1)
STEPS = (48, 68, 96, 136, 192, 272)

ORDERS = [
    ("ddim", {}, 1),
    ("heun", {}, 2),
    ("dpmpp-2m", {}, 2),
    ("ipndm", {}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 3}, 4),
    ("unipc", {"order": 2, "corrector": False}, 2),
    ("unipc", {"order": 3, "corrector": False}, 3),
]
"""UniPC's corrector is worth one order; on data whose start is not as smooth its first step, of
lower order, holds order 3 at a slope of 3."""


@cache
def exact():
    """z = x / alpha at LOW, by the classical Runge-Kutta method in many steps of dz = eps dr."""
    levels = sorted(rho_7(2001, LOW, HIGH), reverse=True)
    middles = [((a ** (1 / 7) + b ** (1 / 7)) / 2) ** 7 for a, b in pairwise(levels)]
    process = sigma_process(sorted([*levels, *middles]))
    denoise = mixture_denoise(process)
    times = {level: i for i, level in enumerate(sorted([*levels, *middles]))}

    def slope(z, u, level):
        """dz/du, u = r^(1/7)."""
        alpha = math.sqrt(1 / (1 + level**2))
        return denoise(alpha * z, times[level]).eps * 7 * u**6

    z = HIGH * START
    for (a, b), c in zip(pairwise(levels), middles, strict=True):
        u, v, w = (level ** (1 / 7) for level in (a, b, c))
        k1 = slope(z, u, a)
        k2 = slope(z + (v - u) / 2 * k1, w, c)
        k3 = slope(z + (v - u) / 2 * k2, w, c)
        k4 = slope(z + (v - u) * k3, v, b)
        z = z + (v - u) / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z


def error(name, n, **options):
    """Root mean square error in z at LOW after n steps."""
    process = sigma_process(rho_7(n + 1, LOW, HIGH))
    x = START * HIGH / math.sqrt(1 + HIGH**2)
    sampler = SAMPLERS[name](
        mixture_denoise(process), process, x, range(n, -1, -1), noise=lambda k: 1 / 0, **options
    )
    *_, state, _ = sampler
    assert state.t == 0
    return float((state.x * math.sqrt(1 + LOW**2) - exact()).square().mean().sqrt())


def slope(name, **options):
    """Minus the slope of log error over log steps, by least squares."""
    x = torch.tensor([math.log(n) for n in STEPS], dtype=torch.float64)
    y = torch.tensor([math.log(error(name, n, **options)) for n in STEPS], dtype=torch.float64)
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())


@pytest.mark.parametrize(("name", "options", "order"), ORDERS, ids=str)
def test_the_observed_order_is_that_of_the_paper(name, options, order):
    assert slope(name, **options) == pytest.approx(order, abs=0.3)
