"""Combinations of table entries, in float32 through a network, against float64 without one.

Any three entries of different tables meet; all combinations of five would be thousands. With the
exact denoiser of Gaussian data all targets must agree, on the full process and on a respaced one,
which is compared with the full one over the same times. A new entry of a table is met here without
touching this file.
"""

import itertools
import math
from functools import cache

import pytest
import torch
from covering_array import covering
from oracles import (
    SAID,
    SPREAD,
    exact_denoise,
    exact_denoiser,
    exact_net,
    gain,
    generator,
    last,
    posterior_coefficients,
    process_of,
    said,
)

from diffuse_cli.core import (
    LOSSES,
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    TARGETS,
    VARIANCES,
    WEIGHTINGS,
    Denoiser,
    Process,
)
from diffuse_cli.core.losses import weights
from diffuse_cli.core.parameterization import STEPWISE
from diffuse_cli.core.schedules import zero_terminal_snr

T, N = 30, 6
SHAPE = (2, 2, 3)


def denoiser_of(schedule, target, variance, respaced):
    process = process_of(schedule, T)
    denoiser = exact_denoiser(process, target, variance)
    return denoiser.respaced(process.times(N)) if respaced else denoiser


def covers(strength=3, **tables):
    """Rows of a process, a denoiser and TABLES in which any three entries meet, or `strength`.

    `flow` ends at SNR 0, where eps is undefined: v stands for it there.
    """
    tables |= {"schedule": SCHEDULES, "target": TARGETS, "variance": VARIANCES}
    schedule, target = list(tables).index("schedule"), list(tables).index("target")
    found = covering(*tables.values(), [False, True], strength=strength)
    rows = [list(row) for row in found]
    for row in rows:
        if (row[schedule], row[target]) == ("flow", "eps"):
            row[target] = "v"
    rows = sorted(set(map(tuple, rows)))
    names = ["-".join([*row, "respaced" if respaced else "full"]) for *row, respaced in rows]
    return pytest.mark.parametrize((*tables, "respaced"), rows, ids=names)


# -- losses ---------------------------------------------------------------------------------------


def drawn(size):
    x0 = SPREAD * torch.randn(size, *SHAPE, generator=generator(1), dtype=torch.float64)
    return x0, torch.randn(x0.shape, generator=generator(2), dtype=torch.float64)


@cache
def errors_and_terms(schedule, variance, respaced):
    """At every timestep the mean squared error of x_0 and the term of the bound, in float64, by
    the exact denoiser itself over times of the full process: no target, no network."""
    full = process_of(schedule, T)
    times = sorted(full.times(N)) if respaced else list(range(T))
    x0, noise = drawn(len(times))
    denoise = exact_denoise(full, variance)
    errors, terms = [], []
    for k, (s, t) in enumerate(itertools.pairwise([-1, *times])):
        clean = x0[k : k + 1]
        x_t = full.diffuse(clean, t, noise[k : k + 1])
        prediction = denoise(x_t, t)
        errors.append((prediction.x0 - clean).square().mean())
        truth = full.posterior(clean, x_t, t, s)
        mean = full.posterior(prediction.x0, x_t, t, s).mean
        log_var = torch.as_tensor(prediction.log_var(t, s), dtype=torch.float64)
        if k == 0:
            # beta-tilde of the process's second timestep stands for that of the first.
            lower = full.coefficients(times[1], times[0], like=clean).log_beta_tilde
            pair = full.coefficients(t, s, like=clean)._replace(log_beta_tilde=lower)
            log_var = torch.as_tensor(VARIANCES[variance](pair, said(variance, x_t))).double()
        model = type(truth)(mean, log_var)
        nats = model.discrete_nll(clean) if k == 0 else truth.kl(model)
        terms.append(nats.mean() / math.log(2))
    return torch.stack(errors), torch.stack(terms)


def factor(schedule, target, respaced):
    """The error of a target over that of x_0: (a - b alpha / sigma)^2."""
    full = process_of(schedule, T)
    times = sorted(full.times(N)) if respaced else list(range(T))
    found = []
    for t in times:
        bar = float(full.alpha_bars[t])
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        a, b = TARGETS[target](alpha, sigma, *posterior_coefficients(full, t))
        found.append((a - b * alpha / sigma) ** 2)
    return torch.tensor(found, dtype=torch.float64)


@covers(loss=sorted(LOSSES))
def test_a_loss_is_that_of_the_exact_denoiser(schedule, target, variance, respaced, loss):
    denoiser = denoiser_of(schedule, target, variance, respaced)
    size = denoiser.process.num_timesteps
    x0, noise = drawn(size)
    precise = LOSSES[loss](denoiser, x0, torch.arange(size), noise)
    errors, terms = errors_and_terms(schedule, variance, respaced)
    simple = errors * factor(schedule, target, respaced)
    known = {"simple": simple, "vlb": terms, "hybrid": simple + size / 1000 * terms}
    if loss in known:
        assert torch.allclose(precise, known[loss], rtol=1e-6, atol=1e-9)
    found = LOSSES[loss](denoiser, x0.float(), torch.arange(size), noise.float())
    assert (found.shape, found.dtype) == ((size,), torch.float32)
    assert torch.allclose(found.double(), precise, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("change", [0.8, 1.25])
def test_no_network_has_a_smaller_loss_than_the_best(loss, target, change):
    """Whatever the loss, its mean is least where the network knows the data."""
    process = process_of("cosine", T)
    best = exact_net(process, target)
    t = torch.arange(T).repeat(50)
    x0, noise = drawn(len(t))

    def mean(net):
        return float(LOSSES[loss](Denoiser(net, process, target), x0, t, noise).mean())

    assert mean(best) < mean(lambda x, shown: change * best(x, shown))


@covers(weighting=sorted(set(WEIGHTINGS) - {"none"}))
def test_a_weighting_makes_all_targets_train_the_same(
    schedule, target, variance, respaced, weighting
):
    """Weighted, the error of any target is w(snr) times the error of x_0."""
    denoiser = denoiser_of(schedule, target, variance, respaced)
    bars = denoiser.process.alpha_bars
    expected = WEIGHTINGS[weighting](bars / (1 - bars))
    found = weights(weighting, denoiser) * factor(schedule, target, respaced)
    there = expected > 0  # a last weight of 0 is replaced
    assert there[:-1].all()
    assert torch.allclose(found[there], expected[there], rtol=1e-6)


# -- samplers -------------------------------------------------------------------------------------


@cache
def reference(sampler, schedule, variance, respaced):
    """Images in float64 from the exact denoiser, over times of the full process."""
    process = process_of(schedule, T)
    times = process.times(N if respaced else T)
    return run(sampler, exact_denoise(process, variance), process, times)


DRAWS = torch.randn(T + 1, 3, *SHAPE, generator=generator(7), dtype=torch.float64)


def run(sampler, denoise, process, times, dtype=torch.float64):
    draws = DRAWS.to(dtype)
    return last(SAMPLERS[sampler](denoise, process, draws[T], times, noise=lambda k: draws[k]))


def close(found, exact):
    assert (found.shape, found.dtype) == (exact.shape, torch.float32)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-3


@covers(sampler=SAMPLERS)
def test_a_sampler_gives_the_same_images(schedule, target, variance, respaced, sampler):
    denoiser = denoiser_of(schedule, target, variance, respaced)
    times = list(reversed(range(denoiser.process.num_timesteps)))
    found = run(sampler, denoiser, denoiser.process, times, torch.float32)
    close(found, reference(sampler, schedule, variance, respaced))


@covers(sampler=["ddpm", "ddim"])
def test_the_variance_follows_its_recursion(schedule, target, variance, respaced, sampler):
    """Var x_s = (c1 gain + c2)^2 Var x_t + the reverse variance, and DDIM's of one factor.

    The sampler is linear in its start and its draws, so that one batch of units tells the whole
    variance of what it makes.
    """
    denoiser = denoiser_of(schedule, target, variance, respaced)
    full = process_of(schedule, T)
    times = full.times(N if respaced else T)
    spread = 1.0
    for t, s in itertools.pairwise([*times, -1]):
        bar_t = float(full.alpha_bars[t])
        bar_s = float(full.alpha_bars[s]) if s >= 0 else 1.0
        alpha, sigma = math.sqrt(bar_t), math.sqrt(1 - bar_t)
        slope = float(gain(alpha, sigma))
        if sampler == "ddim":
            eps = (1 - alpha * slope) / sigma
            spread *= (math.sqrt(bar_s) * slope + math.sqrt(1 - bar_s) * eps) ** 2
            continue
        beta = 1 - bar_t / bar_s
        c1 = math.sqrt(bar_s) * beta / (1 - bar_t)
        c2 = math.sqrt(bar_t / bar_s) * (1 - bar_s) / (1 - bar_t)
        spread *= (c1 * slope + c2) ** 2
        if s >= 0:
            pair = full.coefficients(t, s, like=torch.zeros(1))
            low, high = pair.log_beta_tilde, pair.log_beta
            between = (1 + SAID) / 2 * high + (1 - SAID) / 2 * low
            known = {"small": low, "large": high, "learned": between}
            spoken = said(variance, torch.zeros(1, dtype=torch.float64))
            log_var = known.get(variance, VARIANCES[variance](pair, spoken))
            spread += math.exp(float(log_var))
    size = len(times)
    x, *rows = torch.eye(size + 1).reshape(size + 1, -1, 1, 1, 1)
    steps = list(reversed(range(size)))
    made = last(SAMPLERS[sampler](denoiser, denoiser.process, x, steps, noise=lambda k: rows[k]))
    assert float(made.square().sum()) == pytest.approx(spread, rel=1e-3)


@pytest.mark.parametrize(
    ("sampler", "spacing", "target"), covering(SAMPLERS, SPACINGS, TARGETS, strength=2)
)
def test_a_sampler_takes_the_times_of_every_spacing(sampler, spacing, target):
    process = process_of("cosine", T)
    times = process.times(N, spacing)
    if target in STEPWISE:
        times = list(dict.fromkeys(round(t) for t in times))
    denoiser = Denoiser(exact_net(process, target), process, target)
    exact = run(sampler, exact_denoise(process), process, times)
    close(run(sampler, denoiser, process, times, torch.float32), exact)


# -- zero SNR -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "target", "variance", "sampler"),
    covering(SCHEDULES, sorted(set(TARGETS) - {"eps"}), VARIANCES, SAMPLERS, strength=2),
)
def test_at_zero_snr_the_targets_agree_too(schedule, target, variance, sampler):
    process = Process(zero_terminal_snr(SCHEDULES[schedule](T)))
    wanted = run(sampler, exact_denoise(process, variance), process, process.times(N))
    denoiser = exact_denoiser(process, target, variance)
    close(run(sampler, denoiser, process, process.times(N), torch.float32), wanted)
