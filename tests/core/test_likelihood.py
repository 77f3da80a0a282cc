"""The bound in bits per dimension, and its estimate from strata."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    exact_denoiser,
    gain,
    generator,
    posterior_coefficients,
    process_of,
    said,
    zero_snr,
)

from diffuse_cli.core import SCHEDULES, TARGETS, VARIANCES, Denoiser, bits_per_dim
from diffuse_cli.core.likelihood import draw_visits, plan_visits, prior_bits, strata

FULL = process_of("cosine", 50)
X0 = torch.randint(0, 256, (3, 2, 2, 3), generator=generator(4)).double() / 127.5 - 1
DRAWS = torch.randn(50, *X0.shape, generator=generator(5), dtype=torch.float64)


def draw(t):
    return DRAWS[t]


# -- the bound ------------------------------------------------------------------------------------


def test_the_prior_term_has_the_published_digits():
    denoiser = Denoiser(None, process_of("linear", 1000))
    one = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    assert prior_bits(denoiser, one).tolist() == pytest.approx([2.911294542e-5] * 2, rel=1e-9)
    assert prior_bits(denoiser, -one).tolist() == pytest.approx([2.911294542e-5] * 2, rel=1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("respaced", [False, True])
def test_the_total_is_prior_and_terms(clip, respaced):
    denoiser = exact_denoiser(FULL, "v")
    denoiser = denoiser.respaced(FULL.times(10)) if respaced else denoiser
    bits = bits_per_dim(denoiser, X0, noise=draw, clip=clip)
    assert bits.total.shape == bits.prior.shape == (3,)
    assert bits.terms.shape == (3, denoiser.process.num_timesteps)
    assert torch.equal(bits.total, bits.prior + bits.terms.sum(1))
    assert bool((bits.terms >= 0).all())


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("variance", list(VARIANCES))
def test_every_term_of_gaussian_data_is_its_closed_form(variance, target):
    """KL of two Gaussians whose means differ by c1 (x_0 - E[x_0 | x_t])."""
    bits = bits_per_dim(exact_denoiser(FULL, target, variance), X0, noise=draw, clip=False)
    for t in range(1, 50):
        alpha, sigma = FULL.alpha_sigma(t, like=X0)
        guess = gain(alpha, sigma) * (alpha * X0 + sigma * DRAWS[t])
        c1, _ = posterior_coefficients(FULL, t)
        pair = FULL.coefficients(t, like=X0)
        log_var = torch.as_tensor(VARIANCES[variance](pair, said(variance, X0)), dtype=X0.dtype)
        ratio = pair.log_beta_tilde - log_var
        distance = (c1 * (guess - X0)) ** 2 / log_var.exp()
        nats = 0.5 * (ratio.exp() - 1 - ratio + distance)
        expected = nats.flatten(1).mean(1) / math.log(2)
        assert torch.allclose(bits.terms[:, t], expected, rtol=1e-6), t


def test_clipping_changes_a_guess_that_leaves_the_range_and_a_perfect_one_costs_the_decoder():
    seen, label = [], torch.arange(3)
    far = Denoiser(lambda x, t, **cond: seen.append(cond) or X0 + 9, FULL, "x0")
    clipped = bits_per_dim(far, X0, noise=draw, label=label)
    assert seen == [{"label": label}] * 50
    free = bits_per_dim(far, X0, noise=draw, clip=False)
    assert bool((clipped.total < free.total).all())
    assert torch.equal(clipped.prior, free.prior)
    bits = bits_per_dim(Denoiser(lambda x, t: X0, FULL, "x0"), X0, noise=draw)
    assert float(bits.terms[:, 1:].abs().max()) < 1e-9
    assert bool((bits.terms[:, 0] > 0).all())


# -- strata ---------------------------------------------------------------------------------------


def test_widths_grow_geometrically_from_one():
    widths = [len(p) for p in strata(1000, 50)[1:]]
    low, high = 1.0, 2.0
    for _ in range(100):
        ratio = (low + high) / 2
        low, high = (low, ratio) if ratio**49 > 1 + 999 * (ratio - 1) else (ratio, high)
    assert all(abs(w - ratio**i) < 2 for i, w in enumerate(widths))


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 5000), st.integers(2, 200))
def test_strata_divide_all_timesteps(size, n):
    parts = strata(size, n)
    assert list(itertools.chain(*parts)) == list(range(size))
    assert parts[0] == range(1)
    assert len(parts) == min(n, size)
    widths = [len(p) for p in parts[1:]]
    assert widths == sorted(widths)
    assert widths[0] >= 1


# -- visits ---------------------------------------------------------------------------------------

PROCESSES = {
    **{name: process_of(name, 60) for name in SCHEDULES},
    "zero-snr": zero_snr(60),
    "respaced": process_of("cosine", 1000).respaced(process_of("cosine", 1000).times(60)),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("n", [2, 3, 11, 12, 58, 59])
def test_visits_are_shared_among_all_timesteps(process, n):
    expected = plan_visits(process, n)
    assert expected.shape == (60,)
    assert float(expected.sum()) == pytest.approx(n, rel=1e-12)
    assert float(expected[0]) == (2 if n >= 12 else 1)
    assert float(expected[1:].max()) <= 1
    assert float(expected[1:].min()) >= min(1, 0.01 * (n - 2) / 59)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("n", [60, 61, 5000])
def test_as_many_visits_as_timesteps_are_one_each(process, n):
    expected = plan_visits(process, n)
    assert expected.tolist() == [1.0] * 60
    for place in (0.0, 0.5, math.nextafter(1, 0)):
        assert draw_visits(expected, torch.full((60,), place).double()).tolist() == [*range(60)]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("n", [2, 7, 12, 59])
def test_the_estimate_is_unbiased(process, n):
    """Over all places its mean is the sum of the terms, whatever they are."""
    grid = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None].expand(-1, n)
    expected = plan_visits(process, n)
    times = draw_visits(expected, grid)
    assert set((times == 0).sum(1).tolist()) == {2 if n >= 12 else 1}, "the decoder, always"
    seen = torch.bincount(times.flatten(), minlength=60).double() / 20_000
    assert torch.allclose(seen, expected, atol=2e-4)
    terms = torch.tensor([1 / (t + 1) ** 2 + 0.1 * (t % 3) for t in range(60)]).double()
    estimates = (terms / expected)[times].sum(1)
    assert float(estimates.mean()) == pytest.approx(float(terms.sum()), rel=0.02)


def test_visits_follow_the_terms_of_a_trained_model():
    """The quotients whose sum is the estimate differ far less than the terms: of a `tiny` model of
    Fashion-MNIST four-fold, where its terms differ 10,000-fold."""
    measured = {1: 0.5656, 2: 0.2841, 4: 0.1442, 9: 0.0624, 21: 0.0224, 47: 0.00697, 98: 0.00231,
                208: 0.0007, 452: 0.00021, 966: 0.00004}  # fmt: skip
    expected = plan_visits(process_of("cosine", 1000), 8)
    quotients = [term / float(expected[t]) for t, term in measured.items() if expected[t] < 1]
    assert max(quotients) < 4 * min(quotients)
