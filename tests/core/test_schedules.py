"""Schedules, to the digits of the papers' formulas."""

from __future__ import annotations

import math

import pytest
from oracles import process_of, zero_snr

from diffuse_cli.core import SCHEDULES, Process

DIGITS = {
    ("linear", 1000): (1e-4, 1.1991991992e-4, 0.02, 0.0785872429, 4.0358297654e-5, -9.8167251353),
    # In 40 digits log beta-tilde_1 of linear 4000 is -11.26578194182; the project's list of numbers
    # has a wrong eighth decimal there (-11.2657819818).
    ("linear", 4000): (2.5e-5, 2.6244061e-5, 0.005, 0.0789448733, 4.2466522758e-5, -11.2657819418),
    ("cosine", 1000): (
        4.1284224822e-5, 4.6141752737e-5, 0.999, 0.4938435904, 2.4287669070e-9, -10.7340825325,
    ),
    ("cosine", 4000): (
        9.8658188e-6, 1.0169415e-5, 0.999, 0.4938435904, 1.5179804689e-10, -12.2045371460,
    ),
}  # fmt: skip


def test_the_digits_are_those_published():
    for (name, size), digits in DIGITS.items():
        process = process_of(name, size)
        betas, bars = process.betas, process.alpha_bars
        measured = (betas[0], betas[1], betas[-1], bars[size // 2 - 1], bars[-1])
        assert [float(v) for v in measured] == pytest.approx(digits[:5], rel=3e-8), (name, size)
        log_beta_tilde = process.pair(1, 0, like=betas).log_beta_tilde
        assert log_beta_tilde == pytest.approx(digits[5], abs=1e-10), (name, size)


def test_cosine_has_exactly_one_clipped_beta():
    betas = SCHEDULES["cosine"](1000)
    assert betas.count(0.999) == 1
    assert betas[-1] == 0.999
    assert betas[998] == pytest.approx(0.7499993929, abs=1e-10)


def test_the_product_stays_in_float64():
    assert float(process_of("linear", 1000).alpha_bars[-1]) == pytest.approx(
        math.prod(1 - b for b in SCHEDULES["linear"](1000)), rel=1e-13
    )


@pytest.mark.parametrize("size", [2, 10, 50, 1000, 1733])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_is_a_falling_process(name: str, size: int):
    betas = SCHEDULES[name](size)
    assert len(betas) == size
    assert all(isinstance(b, float) and 0 < b <= 0.999 for b in betas)
    bars = Process(betas).alpha_bars
    assert bool((bars.diff() < 0).all())
    assert float(bars[-1]) < 0.01


def test_every_beta_is_capped_for_few_timesteps():
    assert max(SCHEDULES["linear"](2)) == 0.999


def test_a_zero_snr_process_has_the_rescaled_digits():
    process = zero_snr(1000)
    assert float(process.alpha_bars[499]) == pytest.approx(0.0760287506, abs=1e-10)
    assert float(process.betas[998]) == pytest.approx(0.7522672312, abs=1e-10)
    assert float(process.betas[999]) == 1
    assert float(process.alpha_bars[-1]) == 0
