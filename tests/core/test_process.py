"""The forward process: every coefficient follows from alpha_bar, for any pair of times."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import generator, process_of, zero_snr

from diffuse_cli.core import SCHEDULES, Process
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.schedules import zero_terminal_snr

T = 50
FULL = process_of("cosine", T)
RESPACED = FULL.respaced(FULL.times(10))
PAIRS = [(0, -1), (1, 0), (1, -1), (30, 29), (30, 7), (49, 48), (49, -1)]


def images(batch=4, dtype=torch.float64, seed=0):
    return torch.randn(batch, 2, 3, 5, generator=generator(seed), dtype=dtype)


def bar(process, t):
    return float(process.alpha_bars[t]) if t >= 0 else 1.0


def numbers(pair):
    return [float(column) for column in pair]


# -- the forward Gaussians ------------------------------------------------------------------------


@pytest.mark.parametrize("process", [FULL, RESPACED], ids=["full", "respaced"])
def test_diffuse_mixes_image_and_noise(process):
    x0, noise = images(seed=1), images(seed=2)
    for t in range(process.num_timesteps):
        expected = math.sqrt(bar(process, t)) * x0 + math.sqrt(1 - bar(process, t)) * noise
        assert torch.allclose(process.diffuse(x0, t, noise), expected, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(sorted(SCHEDULES)))
def test_the_posterior_is_bayes_rule(data, schedule):
    """q(x_s | x_t, x_0) is the product of q(x_s | x_0) and q(x_t | x_s), for any s < t."""
    process = process_of(schedule, T)
    t = data.draw(st.integers(1, T - 1))
    s = data.draw(st.integers(0, t - 1))
    keep = bar(process, t) / bar(process, s)
    beta = 1 - keep
    precision = 1 / (1 - bar(process, s)) + keep / beta
    x0, x_t = images(seed=1), images(seed=2)
    likelihood = math.sqrt(keep) * x_t / beta
    mean = (math.sqrt(bar(process, s)) * x0 / (1 - bar(process, s)) + likelihood) / precision
    posterior = process.posterior(x0, x_t, t, s)
    assert torch.allclose(posterior.mean, mean, rtol=1e-8, atol=1e-10)
    assert float(posterior.log_var) == pytest.approx(-math.log(precision), abs=1e-8)


@pytest.mark.parametrize("t", [0, 1, 25, 49])
def test_the_posterior_of_clean_data_is_the_clean_data(t):
    x0, x_t = images(seed=1), images(seed=2)
    posterior = FULL.posterior(x0, x_t, t, -1)
    assert torch.allclose(posterior.mean, x0, rtol=1e-12)
    assert float(posterior.log_var) == FULL.coefficients(1, 0, like=x0).log_beta_tilde


def test_the_prior_is_the_last_forward_gaussian():
    x0 = images()
    prior = FULL.prior(x0)
    assert torch.allclose(prior.mean, math.sqrt(bar(FULL, T - 1)) * x0)
    assert float(prior.log_var) == pytest.approx(math.log(1 - bar(FULL, T - 1)))


# -- three kinds of time --------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_int_float_and_tensor_times_agree(t, s):
    """Without a second time, it is the timestep before."""
    like = images()
    expected = numbers(FULL.coefficients(t, s, like=like))
    times, before = torch.full((4,), t), torch.full((4,), s)
    pairs = [(times, before), (times, s), (float(t), float(s))]
    if s == t - 1:
        pairs += [(t,), (times,), (float(t),)]
    for pair in pairs:
        found = FULL.coefficients(*pair, like=like)
        for column, value in zip(found, expected, strict=True):
            values = torch.as_tensor(column, dtype=torch.float64)
            assert values.shape in [(4, 1, 1, 1), (1, 1, 1, 1), ()]
            assert values.flatten().tolist() == pytest.approx([value] * values.numel(), rel=1e-12)
    assert FULL.log_snr(float(t)) == FULL.log_snr(t)
    assert FULL.alpha_bar(float(t)) == FULL.alpha_bar(t) == bar(FULL, t)


def test_a_mixed_batch_of_times_is_each_image_alone():
    x0, x_t = images(seed=1), images(seed=2)
    t, s = torch.tensor([0, 1, 30, 49]), torch.tensor([-1, -1, 7, 48])
    together = FULL.posterior(x0, x_t, t, s)
    diffused = FULL.diffuse(x0, t, x_t)
    for i in range(4):
        alone = FULL.posterior(x0[i : i + 1], x_t[i : i + 1], int(t[i]), int(s[i]))
        assert torch.allclose(together.mean[i], alone.mean[0], rtol=1e-12)
        assert float(together.log_var[i]) == pytest.approx(float(alone.log_var))
        expected = FULL.diffuse(x0[i : i + 1], int(t[i]), x_t[i : i + 1])
        assert torch.allclose(diffused[i], expected[0], rtol=1e-12)
    assert FULL.log_snr(t).tolist() == [FULL.log_snr(int(v)) for v in t]


@settings(max_examples=60, deadline=None)
@given(st.floats(0, T - 1))
def test_between_timesteps_log_snr_is_linear(t):
    low = int(t)
    high = min(low + 1, T - 1)
    expected = FULL.log_snr(low) * (1 - (t - low)) + FULL.log_snr(high) * (t - low)
    assert FULL.log_snr(t) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    level = FULL.alpha_bar(t)
    assert math.log(level / (1 - level)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    alpha, sigma = FULL.alpha_sigma(t, like=images())
    assert (alpha**2, alpha**2 + sigma**2) == pytest.approx((level, 1))


def test_a_level_below_the_last_finite_one_has_the_nearest_time():
    process = process_of("flow", T)
    last = process.log_snr(T - 2)
    assert process.time_at(-math.inf) == T - 1
    assert process.time_at(last - 1) == process.time_at(last) == T - 2
    assert T - 3 < process.time_at(last + 0.01) < T - 2


def test_the_timestep_shown_is_interpolated_too():
    like = images(2)
    assert FULL.time_input(12, like=like).tolist() == [240, 240]
    assert FULL.time_input(12.25, like=like).tolist() == pytest.approx([245, 245])
    assert FULL.time_input(torch.tensor([0, 49]), like=like).tolist() == [0, 980]
    assert FULL.time_input(3, like=like).dtype == torch.float32
    process = process_of("cosine", 1000)
    assert process.time_input(torch.tensor([999]), like=like.bfloat16()).tolist() == [999]


# -- clean data is never an index -----------------------------------------------------------------


def test_a_time_outside_of_the_process_is_an_index_error():
    x0, noise = images(seed=1), images(seed=2)
    calls = [
        lambda t: FULL.diffuse(x0, t, noise),
        lambda t: FULL.coefficients(t, like=x0),
        lambda t: FULL.coefficients(t, -1, like=x0),
        lambda t: FULL.time_input(t, like=x0),
    ]
    before = [(call, t) for call in calls for t in (-1, torch.tensor([3, -1, 2, 0]))]
    after = [(calls[0], t) for t in (T, T + 5, torch.tensor([0, 0, 0, T]))]
    for call, t in before + after:
        with pytest.raises(IndexError):
            call(t)
    assert FULL.log_snr(-1) == math.inf
    assert FULL.log_snr(torch.tensor([0, -1])).tolist() == [FULL.log_snr(0), math.inf]
    assert FULL.alpha_bar(-1) == 1
    assert FULL.coefficients(10, -1, like=images()).sigma_s == 0
    assert zero_snr(100).log_snr(99.5) == -math.inf
    assert FULL.log_snr(T - 0.5) == FULL.log_snr(T - 1)
    with pytest.raises(IndexError):
        FULL.log_snr(T + 0.5)


def test_the_step_from_between_two_timesteps_ends_at_the_lower_one():
    x = images()
    assert FULL.coefficients(7.5, like=x) == FULL.coefficients(7.5, 7, like=x)
    assert FULL.coefficients(7.0, like=x) == FULL.coefficients(7, 6, like=x)
    assert FULL.coefficients(7.5, 7, like=x) != FULL.coefficients(7.5, 6, like=x)


# -- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [7, 7.5, torch.tensor([7, 7, 0, 49])], ids=["int", "float", "tensor"])
def test_the_dtype_of_the_images_stays(dtype, t):
    x0 = images(dtype=torch.float32).to(dtype)
    assert FULL.diffuse(x0, t, x0).dtype == dtype
    assert FULL.posterior(x0, x0, t).mean.dtype == dtype
    assert FULL.prior(x0).mean.dtype == dtype
    process, time = process_of("linear", T), torch.tensor([1])
    for kind in (dtype, torch.float64, dtype):
        assert process.coefficients(time, like=torch.zeros(1, dtype=kind)).alpha.dtype == kind
    for values in (FULL.betas, RESPACED.alpha_bars, process.timesteps):
        assert values.dtype == torch.float64


# -- respacing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "karras"])
def test_a_respaced_process_is_the_full_one_at_those_times(spacing):
    times = FULL.times(10, spacing)
    rising = sorted(times)
    respaced = FULL.respaced(times)
    assert torch.equal(respaced.alpha_bars, FULL.respaced(rising).alpha_bars)
    assert respaced.num_timesteps == 10
    for i, t in enumerate(rising):
        assert respaced.alpha_bar(i) == pytest.approx(FULL.alpha_bar(t), rel=1e-12)
        like = images(1)
        assert torch.equal(respaced.time_input(i, like=like), FULL.time_input(t, like=like))
        if i > 0:
            expected = numbers(FULL.coefficients(t, rising[i - 1], like=like))
            assert numbers(respaced.coefficients(i, like=like)) == pytest.approx(expected, rel=1e-9)


# -- zero terminal SNR ----------------------------------------------------------------------------


def test_pure_noise_has_finite_coefficients():
    process = zero_snr(1000)
    x0, x_t = images(seed=1), images(seed=2)
    assert process.log_snr(999) == -math.inf
    assert torch.equal(process.diffuse(x0, 999, x_t), x_t)
    for s in (998, 400, 0):
        posterior = process.posterior(x0, x_t, 999, s)
        assert torch.allclose(posterior.mean, math.sqrt(bar(process, s)) * x0, rtol=1e-10)
        assert float(posterior.log_var) == pytest.approx(math.log(1 - bar(process, s)))
    assert bool(process.prior(x0).kl(process.prior(x0 * 0)).eq(0).all())
    assert float(process.respaced(process.times(10)).betas[-1]) == 1
    assert (float(process.prior(x0).mean.abs().max()), float(process.prior(x0).log_var)) == (0, 0)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("size", [2, 3, 50])
def test_a_process_without_signal_at_its_end_is_finite_everywhere_else(name, size):
    process = Process(zero_terminal_snr(SCHEDULES[name](size)))
    last, x = size - 1, images()
    for t in (last, float(last), torch.full((4,), last)):
        for s in (last - 1, 0, -1, None):
            pair = process.coefficients(t, s, like=x)
            assert all(bool(torch.as_tensor(c).isfinite().all()) for c in pair), (t, s)
            for nothing in (pair.alpha, pair.c2, pair.log_beta):
                assert bool((torch.as_tensor(nothing) == 0).all()), (t, s)
    assert process.log_snr(torch.tensor([last])).tolist() == [-math.inf]


def test_between_the_last_two_timesteps_of_zero_snr_nothing_of_the_image_is_left():
    """log-SNR is interpolated: any part of -inf is -inf."""
    process, x = zero_snr(100), images()
    for t in (98.001, 98.5, 98.999):
        assert process.log_snr(t) == -math.inf
        assert process.alpha_bar(t) == 0
        assert process.alpha_sigma(t, like=x) == (0, 1)
        posterior = process.posterior(x, x * 0, t, 98)
        assert torch.allclose(posterior.mean, math.sqrt(bar(process, 98)) * x)
    assert process.alpha_bar(98.0) == bar(process, 98) > 0
    with pytest.raises(ValueError, match=r"no step to s = 98\.5"):
        process.coefficients(99, 98.5, like=x)
    for times in ([3, 98.5, 99], [3, 3, 5]):
        with pytest.raises(InvalidArgument):
            process.respaced(times)


def test_a_level_that_is_hardly_there_does_not_overflow():
    process = Process([0.999] * 103)
    assert process.log_snr(102) < -710
    assert 0 <= process.alpha_bar(101.9) < 1e-300


@pytest.mark.parametrize(
    "betas",
    [[], [0.0, 0.1], [0.1, 1.1], [-0.1], [math.nan], [[0.1, 0.2]], [0.1, math.inf], [1.0, 0.5],
     [0.5, 1.0, 1.0], [1e-20, 0.5], [0.999] * 200],
)  # fmt: skip
def test_betas_outside_their_range_are_refused(betas):
    with pytest.raises(InvalidArgument):
        Process(betas)


def test_the_timesteps_from_a_log_snr_on_are_those_of_no_more():
    levels = [FULL.log_snr(t) for t in range(T)]
    for t, level in enumerate(levels):
        assert FULL.from_log_snr(level) == t + 1
        assert FULL.from_log_snr(level + 1e-9) == t + 1
        assert FULL.from_log_snr(level - 1e-9) == min(t + 2, T), "the next lower one, if any is"
    assert FULL.from_log_snr(math.inf) == 1
    assert FULL.from_log_snr(-math.inf) == T


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize(("s", "t"), [(-1, 0), (-1, 40), (3, 17), (17, 49)])
def test_the_transition_goes_on_where_diffusing_stopped(s, t, tensors):
    """q(x_t | x_s) after q(x_s | x_0) is q(x_t | x_0)."""
    process = process_of("cosine", 50)
    x0 = torch.full((2, 1, 3), 0.7, dtype=torch.float64)
    level_s = process.alpha_sigma(s, like=x0) if s >= 0 else (1.0, 0.0)
    at = (torch.full((2,), s), torch.full((2,), t)) if tensors else (s, t)
    up = process.transition(level_s[0] * x0, *at)
    by_one = process.transition(torch.ones_like(x0), *at).mean
    alpha, sigma = process.alpha_sigma(t, like=x0)
    assert torch.allclose(up.mean, alpha * x0)
    variance = by_one**2 * level_s[1] ** 2 + up.log_var.exp()
    assert torch.allclose(variance, torch.full_like(x0, sigma**2))
