"""Which timesteps are visited."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exact_denoise, process_of, zero_snr

from diffuse_cli.core import SAMPLERS, SPACINGS, Process
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.samplers import OF_DISTILLED, default_spacing

PUBLISHED = {
    ("leading", 10): [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    ("trailing", 10): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    ("linspace", 10): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    ("trailing", 13): [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76],
}


@pytest.mark.parametrize(("spacing", "n"), list(PUBLISHED))
def test_times_are_those_published(spacing: str, n: int):
    assert process_of("linear", 1000).times(n, spacing) == PUBLISHED[spacing, n]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.integers(1, 300), st.sampled_from(sorted(SPACINGS)))
def test_every_spacing_gives_n_falling_times_of_the_process(size: int, n: int, spacing: str):
    n = min(n, size)
    times = process_of("linear", size).times(n, spacing)
    assert len(times) == n
    assert all(a > b for a, b in pairwise(times))
    assert 0 <= times[-1] <= times[0] <= size - 1


@pytest.mark.parametrize("spacing", list(SPACINGS))
def test_all_times_of_a_process_are_possible(spacing: str):
    times = process_of("cosine", 50).times(50, spacing)
    assert len(set(times)) == 50
    assert (times == list(range(49, -1, -1))) == (spacing != "karras")


def test_trailing_and_linspace_start_at_noise_and_trailing_is_the_default():
    process = process_of("linear", 1000)
    for n in (1, 7, 999):
        assert process.times(n, "trailing")[0] == process.times(n, "linspace")[0] == 999
        assert process.times(n) == process.times(n, "trailing")


def test_karras_spaces_the_seventh_root_of_sigma_evenly():
    process = process_of("cosine", 1000)
    times = process.times(18, "karras")
    roots = [math.exp(-process.log_snr(t) / 2) ** (1 / 7) for t in times]
    steps = [a - b for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 17, rel=1e-6)
    assert times[0] == pytest.approx(999)
    assert times[-1] == pytest.approx(0)


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_early_spaces_a_power_of_the_angle_evenly(schedule: str, n: int):
    process = process_of(schedule, 1000)

    def angle(t: int) -> float:
        return math.atan(math.exp(-process.log_snr(t) / 2))

    times = process.times(n, "early")
    assert times[0] == 999
    for k, t in enumerate(times):
        wanted = angle(999) * (1 - k / n) ** 0.6
        assert all(
            abs(angle(t) - wanted) <= abs(angle(s) - wanted)
            for s in (t - 1, t + 1)
            if 0 <= s < 1000
        )


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_wide_spaces_the_angle_of_a_stretched_log_snr_evenly(schedule: str, n: int):
    """That of `cosine` with its log-SNR 1 + 5/n times as wide, around -1."""
    process = process_of(schedule, 1000)

    def angle(t: int) -> float:
        return math.atan(math.exp(-(process.log_snr(t) + 1) / (2 + 10 / n)))

    times = process.times(n, "wide")
    assert times[0] == 999
    for k, t in enumerate(times):
        off = abs(angle(t) - angle(999) * (1 - k / n))
        beside = [abs(angle(s) - angle(999) * (1 - k / n)) for s in (t - 1, t + 1) if 0 <= s < 1000]
        assert off <= min(beside)


# -- what few steps keep --------------------------------------------------------------------------


def kept(process: Process, sampler: str, spread: float, n: int) -> float:
    """The spread of samples over that of the data, with the exact denoiser: linear in each draw."""
    times = process.times(n, default_spacing(sampler, n))
    draws = torch.eye(n + 1, dtype=torch.float64).reshape(n + 1, n + 1, 1)
    denoise = exact_denoise(process, spread=spread)
    *_, end = SAMPLERS[sampler](denoise, process, draws[n], times, noise=lambda k: draws[k])
    return float(end.x.norm()) / spread


@pytest.mark.parametrize(
    ("n", "fine", "coarse"), [(5, 0.46, 0.65), (8, 0.59, 0.74), (10, 0.64, 0.77)]
)
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - OF_DISTILLED))
def test_the_default_spacing_keeps_detail(sampler: str, n: int, fine: float, coarse: float):
    """Components of spread 0.2 and 0.5; the limits are those of `ddpm`, which keeps least."""
    process = process_of("cosine", 1000)
    assert fine < kept(process, sampler, 0.2, n) < 1.15
    assert coarse < kept(process, sampler, 0.5, n) < 1.15


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
@pytest.mark.parametrize(("n", "least"), [(5, 0.65), (8, 0.8), (10, 0.85)])
def test_the_default_sampler_keeps_detail_and_what_is_wider_than_a_pixel(
    schedule: str, n: int, least: float
):
    """Trailing times of `cosine` keep 0.47, 0.66 and 0.75 of a component of spread 8, and early
    ones 0.28, 0.38 and 0.43 of one of 0.2."""
    process = process_of(schedule, 1000)
    for spread in (0.2, 0.5, 1, 2, 4, 8):
        assert least < kept(process, "unipc", spread, n) < 1.08


def test_karras_starts_at_pure_noise_where_the_last_snr_is_zero():
    process = zero_snr(100)
    times = process.times(10, "karras")
    assert times[:2] == [99, pytest.approx(98)]
    assert times[-1] == pytest.approx(0)
    roots = [math.exp(-process.log_snr(t) / 2) ** (1 / 7) for t in times[1:]]
    steps = [a - b for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 8, rel=1e-6)
    assert process.times(1, "karras") == [99]


@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize("size", [2, 3, 20])
def test_times_of_zero_snr_fall_and_can_be_respaced(size: int, spacing: str):
    for n in range(1, size + 1):
        times = zero_snr(size).times(n, spacing)
        assert len(times) == n
        assert all(a > b for a, b in pairwise(times))
        assert 0 <= times[-1] <= times[0] <= size - 1
        assert zero_snr(size).respaced(times).num_timesteps == n


@pytest.mark.parametrize("n", [-1, 0, 51])
def test_more_times_than_timesteps_are_refused(n: int):
    with pytest.raises(InvalidArgument, match=r"^steps must be 1 to 50"):
        process_of("linear", 50).times(n)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(InvalidArgument, match="Did you mean 'trailing'"):
        process_of("linear", 50).times(5, "trailling")
