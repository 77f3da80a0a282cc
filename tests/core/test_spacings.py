"""Which timesteps are visited."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exact_denoise, process_of, zero_snr

from diffuse_cli.core import SAMPLERS, SPACINGS
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.samplers import OF_DISTILLED, default_spacing

PUBLISHED = {
    ("leading", 10): [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    ("trailing", 10): [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    ("linspace", 10): [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    ("trailing", 13): [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76],
}


@pytest.mark.parametrize(("spacing", "n"), list(PUBLISHED))
def test_times_are_those_published(spacing, n):
    assert process_of("linear", 1000).times(n, spacing) == PUBLISHED[spacing, n]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 300), st.integers(1, 300), st.sampled_from(sorted(SPACINGS)), st.booleans(),
)  # fmt: skip
def test_every_spacing_gives_n_falling_times_of_the_process(size, n, spacing, without_signal):
    n = min(n, size)
    process = zero_snr(size) if without_signal else process_of("linear", size)
    times = process.times(n, spacing)
    assert len(times) == n
    assert all(a > b for a, b in pairwise(times))
    assert 0 <= times[-1] <= times[0] <= size - 1
    assert process.respaced(times).num_timesteps == n
    if n == size and spacing != "karras":
        assert times == list(range(size - 1, -1, -1))
    if spacing == "trailing":
        assert times[0] == size - 1
        assert times == process.times(n)


@pytest.mark.parametrize(("process", "rest"), [(process_of("cosine", 1000), 0), (zero_snr(100), 1)])
def test_karras_spaces_the_seventh_root_of_sigma_evenly(process, rest):
    """From pure noise, and then from the timestep before it, where the last SNR is zero."""
    times, size = process.times(18, "karras"), process.num_timesteps
    assert times[: rest + 1] == pytest.approx([size - 1, size - 2][: rest + 1])
    roots = [math.exp(-process.log_snr(t) / 2) ** (1 / 7) for t in times[rest:]]
    steps = [a - b for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    assert times[-1] == pytest.approx(0)
    assert process.times(1, "karras") == [size - 1]


ANGLES = {
    "early": (lambda log_snr, n: math.exp(-log_snr / 2), 0.6),
    "wide": (lambda log_snr, n: math.exp(-(log_snr + 1) / (2 + 10 / n)), 1.0),
}
"""The tangent of the angle of which a spacing takes even steps, and the power of that: `wide` has
that of `cosine` with its log-SNR 1 + 5/n times as wide, around -1."""


@pytest.mark.parametrize("spacing", ANGLES)
@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_early_and_wide_space_an_angle_evenly(schedule, n, spacing):
    process, (tangent, power) = process_of(schedule, 1000), ANGLES[spacing]
    angles = [math.atan(tangent(process.log_snr(t), n)) for t in range(1000)]
    times = process.times(n, spacing)
    assert times[0] == 999
    for k, t in enumerate(times):
        wanted = angles[999] * (1 - k / n) ** power
        beside = [abs(angle - wanted) for angle in angles[max(t - 1, 0) : t + 2]]
        assert abs(angles[t] - wanted) == min(beside)


# -- what few steps keep --------------------------------------------------------------------------


def kept(process, sampler, spread, n):
    """The spread of samples over that of the data, with the exact denoiser: linear in each draw."""
    times = process.times(n, default_spacing(sampler, n))
    draws = torch.eye(n + 1, dtype=torch.float64).reshape(n + 1, n + 1, 1)
    denoise = exact_denoise(process, spread=spread)
    *_, end = SAMPLERS[sampler](denoise, process, draws[n], times, noise=lambda k: draws[k])
    return float(end.x.norm()) / spread


@pytest.mark.parametrize(
    ("n", "fine", "coarse", "least"),
    [(5, 0.46, 0.65, 0.65), (8, 0.59, 0.74, 0.8), (10, 0.64, 0.77, 0.85)],
)
def test_the_default_spacing_keeps_detail(n, fine, coarse, least):
    """Components of spread 0.2 and 0.5, with limits of `ddpm`, which keeps least; and of the
    default sampler also those that are wider than a pixel. Trailing times of `cosine` keep 0.47,
    0.66 and 0.75 of a component of spread 8, and early ones 0.28, 0.38 and 0.43 of one of 0.2."""
    process = process_of("cosine", 1000)
    for sampler in set(SAMPLERS) - OF_DISTILLED:
        assert fine < kept(process, sampler, 0.2, n) < 1.15, sampler
        assert coarse < kept(process, sampler, 0.5, n) < 1.15, sampler
    for schedule, spread in product(("cosine", "linear", "flow"), (0.2, 0.5, 1, 2, 4, 8)):
        assert least < kept(process_of(schedule, 1000), "unipc", spread, n) < 1.08


@pytest.mark.parametrize(
    ("arguments", "said"),
    [*(((n,), r"^steps must be 1 to 50") for n in (-1, 0, 51)), ((5, "trailling"), "'trailing'")],
)
def test_more_times_than_timesteps_and_unknown_spacings_are_refused(arguments, said):
    with pytest.raises(InvalidArgument, match=said):
        process_of("linear", 50).times(*arguments)
