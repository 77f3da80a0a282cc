"""Schedules, to the digits of the papers' formulas."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import process_of, zero_snr

from diffuse_cli.core import SCHEDULES, Process
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.schedules import shift_log_snr, zero_terminal_snr

DIGITS = {
    "linear": (1e-4, 1.1991991992e-4, 0.02, 0.0785872429, 4.0358297654e-5, -9.8167251353),
    "cosine": (4.12842248e-5, 4.61417527e-5, 0.999, 0.4938435904, 2.428766907e-9, -10.7340825325),
    "flow": (1.002002e-6, 3.0140330198e-6, 1.0, 0.5, 0.0, -14.1005258541),
    "sigmoid": (3.0027919975e-4, 3.0200411919e-4, 0.999, 0.5, 3.0027919975e-7, -8.8009345764),
}


def test_the_digits_are_those_published():
    for name, digits in DIGITS.items():
        process = process_of(name, 1000)
        betas, bars = process.betas, process.alpha_bars
        measured = (betas[0], betas[1], betas[-1], bars[499], bars[-1])
        assert [float(v) for v in measured] == pytest.approx(digits[:5], rel=3e-8), name
        log_beta_tilde = process.coefficients(1, 0, like=betas).log_beta_tilde
        assert log_beta_tilde == pytest.approx(digits[5], abs=1e-10), name
    process = zero_snr(1000)
    rescaled = [float(v) for v in (process.alpha_bars[499], *process.betas[998:])]
    assert rescaled == pytest.approx([0.0760287506, 0.7522672312, 1], abs=1e-10)
    assert max(SCHEDULES["linear"](2)) == 0.999


def logistic(x):
    return math.exp(x) / (1 + math.exp(x))


def laplace_log_snr(u):
    return -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(u - 0.5))


LEVELS = {
    "cosine": lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2,
    "sigmoid": lambda u: (logistic(3) - logistic(6 * u - 3)) / (logistic(3) - logistic(-3)),
    "sqrt": lambda u: 1 - math.sqrt(u + 1e-4),
    "laplace": lambda u: logistic(laplace_log_snr(u)) if u > 0 else 1.0,
    "flow": lambda u: logistic(2 * math.log((1 - u) / u)) if u > 0 else 1.0,
}
BETAS = {
    "linear": lambda k, u: k * 1e-4 + u * (k * 0.02 - k * 1e-4),
    "quadratic": lambda k, u: (math.sqrt(k * 1e-4) * (1 - u) + math.sqrt(k * 0.02) * u) ** 2,
    "constant": lambda k, u: k * 0.02,
}

LAST = {"flow": 1.0}
"""The last beta of what is given by alpha_bar, if it is not capped at 0.999."""


@pytest.mark.parametrize("size", [40, 1000])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_is_its_papers_formula(name, size):
    """The formula as published, against betas that are rewritten to be finite at both ends."""
    betas = SCHEDULES[name](size)
    if name in BETAS:
        assert betas == pytest.approx(
            [BETAS[name](1000 / size, t / (size - 1)) for t in range(size)], rel=1e-10
        )
        return
    levels = [LEVELS[name](t / size) for t in range(size)]
    ratios = [1 - after / before for before, after in pairwise(levels)]
    assert betas[:-1] == pytest.approx(ratios, rel=1e-9)
    assert betas[-1] == LAST.get(name, 0.999)


def test_a_sqrt_process_is_capped_where_its_signal_is_spent():
    """Beyond 10,000 timesteps 1 - sqrt(u + 1e-4) reaches 0 before the last one."""
    betas = SCHEDULES["sqrt"](100_000)
    assert betas[-11:] == [0.999] * 11
    assert betas[-12] == pytest.approx(0.5, abs=1e-3)
    assert float(Process(betas).alpha_bars[-1]) > 0


@pytest.mark.parametrize("size", [2, 3, 7, 10, 21, 50, 1000, 1733])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_is_a_falling_process(name, size):
    betas = SCHEDULES[name](size)
    assert len(betas) == size
    assert all(isinstance(b, float) and 0 < b <= 0.999 for b in betas[:-1])
    assert 0 < betas[-1] <= LAST.get(name, 0.999)
    bars = Process(betas).alpha_bars
    assert bool((bars.diff() < 0).all())
    assert float(bars[-1]) < 0.01


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_can_be_rescaled_to_end_without_signal(name):
    for size in (*range(2, 60), 250, 999, 1000):
        betas = zero_terminal_snr(SCHEDULES[name](size))
        assert len(betas) == size
        assert all(isinstance(b, float) and 0 < b < 1 for b in betas[:-1]), size
        assert betas[-1] == 1, size
        process, before = Process(betas), process_of(name, size)
        assert float(process.alpha_bars[-1]) == 0, size
        assert process.log_snr(size - 1) == -math.inf
        alphas = before.alpha_bars.sqrt()
        first, last = alphas[0], alphas[-1]
        expected = (alphas - last) * first / (first - last)
        assert torch.allclose(process.alpha_bars.sqrt(), expected, rtol=1e-6, atol=1e-9), size
        assert betas[0] == SCHEDULES[name](size)[0]


@pytest.mark.parametrize("shift", [-2 * math.log(2), 1.0, -10.0, 10.0])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_shift_is_added_to_log_snr(name, shift):
    for size in (2, 50, 1000):
        betas, before = shift_log_snr(SCHEDULES[name](size), shift), process_of(name, size)
        after = Process(betas)
        for t in range(size):
            assert after.log_snr(t) == pytest.approx(before.log_snr(t) + shift, abs=1e-6)
    back = shift_log_snr(betas, -shift)
    assert back == pytest.approx(SCHEDULES[name](size), rel=1e-6, abs=1e-9)


def test_what_ends_without_signal_is_not_rescaled_again_and_stays_without_when_shifted():
    betas = zero_terminal_snr(SCHEDULES["sigmoid"](100))
    assert zero_terminal_snr(betas) == pytest.approx(betas, rel=1e-12)
    assert shift_log_snr([0.5, 1.0, 0.5], 2.0)[1:] == [1.0, 1.0]


@pytest.mark.parametrize("betas", [[0.5], [], [0.5, 1.0, 0.5], [1.0, 0.5], [1e-20, 0.5]])
def test_what_does_not_fall_cannot_be_rescaled(betas):
    with pytest.raises(InvalidArgument, match="zero terminal SNR"):
        zero_terminal_snr(betas)
