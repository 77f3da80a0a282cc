"""Samplers against the closed recursion of Gaussian data.

With the exact denoiser of Gaussian data a sampler is linear in its start and its draws, so one
batch tells the whole output distribution: one image starts at 1 without noise, and one image for
each step has noise 1 in that step alone.
"""

import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from oracles import (
    exact_denoise,
    exact_denoiser,
    gain,
    generator,
    ideal_net,
    last,
    mixture_denoise,
    process_of,
    rho_7,
    sigma_process,
    zero_snr,
)

from diffuse_cli.core import SAMPLERS, SCHEDULES, Denoiser, Process
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.samplers import OF_DISTILLED, State, encode, sample, sampler_options
from diffuse_cli.core.solvers import SolverStep, phi

LINEAR = process_of("linear", 1000)
COSINE = process_of("cosine", 1000)

SOLVERS = sorted(set(SAMPLERS) - OF_DISTILLED)
DETERMINISTIC = [name for name in SOLVERS if name not in ("ddpm", "dpmpp-2m-sde")]


def spread_of(name, times, process=LINEAR, **options):
    """The standard deviation of what a sampler makes from N(0, 1)."""
    unit = torch.eye(len(times) + 1, dtype=torch.float64)[..., None, None, None]
    denoise, noise = exact_denoise(process), unit.__getitem__
    states = SAMPLERS[name](denoise, process, unit[-1], times, noise=noise, **options)
    return float(last(states).norm())


def test_ddim_at_eta_one_is_ancestral_sampling():
    """The marginal of x_s given x_t and x_0 is the posterior."""
    times = LINEAR.times(50)
    assert spread_of("ddim", times, eta=1.0) == pytest.approx(spread_of("ddpm", times), rel=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_more_steps_come_nearer_to_the_data(name):
    errors = [abs(spread_of(name, LINEAR.times(n)) - 0.5) for n in (10, 50, 250)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


IMAGES = torch.randint(0, 256, (5, 1, 4, 4), generator=generator(11)).double() / 127.5 - 1


def distances_to_images(name, schedule, n):
    """How far each of 100 samples is from each image, in its worst pixel: the best prediction for
    data of a few images is known, a softmax over them."""
    process = process_of(schedule, 1000)
    denoiser = Denoiser(ideal_net(process, IMAGES), process, "x0")
    draws = torch.randn(n + 1, 100, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    times = process.times(n, "karras")
    found = last(SAMPLERS[name](denoiser, process, draws[n], times, noise=draws.__getitem__))
    return (found[:, None] - IMAGES).abs().flatten(2).amax(2)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_sampler_returns_the_images(name, schedule):
    distance = distances_to_images(name, schedule, 40)
    assert float(distance.min(1).values.max()) < 0.5 / 127.5
    counts = torch.bincount(distance.argmin(1), minlength=5)
    assert bool(((counts - 20).abs() < 16).all())  # four standard deviations
    if schedule == "cosine":
        assert float(distances_to_images(name, schedule, 20).min(1).values.max()) < 1e-6


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sampler_yields_a_state_after_each_step_and_stops_where_its_caller_does(name):
    process = process_of("cosine", 50)
    times, exact = process.times(7), exact_denoise(process)
    start = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    asked, calls = [], []

    def noise(k):
        asked.append(k)
        return torch.zeros_like(start)

    def denoise(x, t, **cond):
        calls.append(t)
        return exact(x, t)

    states = SAMPLERS[name](denoise, process, start, times, noise=noise)
    first = next(states)
    assert calls == [49]
    states = [first, *states]
    assert [s.t for s in states] == [*times[1:], -1]
    assert all(s.x.shape == s.x0.shape == start.shape for s in states)
    assert torch.allclose(states[-1].x, states[-1].x0)
    assert all(0 <= k < len(times) for k in asked)
    assert asked == sorted(set(asked))
    assert torch.equal(start, torch.ones_like(start))


def test_a_sampling_keeps_one_state_at_a_time(monkeypatch):
    begun = []

    def many(denoise, process, x, times, *, noise):
        for t in times:
            x = x + 1
            begun.append(weakref.ref(x))
            assert sum(ref() is not None for ref in begun) <= 3
            yield State(x, x, t)

    monkeypatch.setitem(SAMPLERS, "many", many)
    drawn = sample(exact_denoiser(COSINE, "v"), (1, 1, 2, 2), steps=20, sampler="many", seed=0)
    assert drawn.shape == (1, 1, 2, 2)
    assert len(begun) == 20


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("times", [[0], [999], [999, 0], [500, 17, 3]], ids=str)
def test_any_falling_times_are_sampled(name, times):
    assert math.isfinite(spread_of(name, times))


@pytest.mark.parametrize("name", SOLVERS)
def test_real_times_are_sampled_too(name):
    times = LINEAR.times(20)
    assert spread_of(name, [float(t) for t in times]) == pytest.approx(
        spread_of(name, times), rel=1e-12
    )
    # A process of these times alone, with the log-SNR interpolated here.
    times = LINEAR.times(20, "karras")
    assert any(t != round(t) for t in times)
    snr = LINEAR.log_snr(torch.arange(1000)).double().numpy()
    bars = 1 / (1 + np.exp(-np.interp(times[::-1], np.arange(1000), snr)))
    betas = torch.from_numpy(1 - bars / np.concatenate([[1.0], bars[:-1]]))
    own = spread_of(name, list(range(19, -1, -1)), process=Process(betas))
    assert spread_of(name, times) == pytest.approx(own, rel=1e-9)


# -- the digits -----------------------------------------------------------------------------------


ENDS = {
    10: {"ddim": 0.3652130651, "heun": 0.6097980008, "dpmpp-2m": 0.5793866576},
    18: {"ddim": 0.4230314364, "heun": 0.5276246370, "dpmpp-2m": 0.5311400744},
    40: {"ddim": 0.4648507745, "heun": 0.5048768647, "dpmpp-2m": 0.5051924249},
}
"""From x = 80 at sigma 80, in so many steps, where alpha is 1 at the end."""


@pytest.mark.parametrize("n", ENDS)
def test_a_solver_has_the_exact_end_in_sigma_space(n):
    process = sigma_process(rho_7(n))
    x = torch.full((1, 1, 1, 1), 80 / math.sqrt(1 + 80**2), dtype=torch.float64)
    for name, end in ENDS[n].items():
        times = range(n - 1, -1, -1)
        states = SAMPLERS[name](exact_denoise(process), process, x, times, noise=lambda k: 1 / 0)
        assert float(last(states)) == pytest.approx(end, abs=2e-10), name


@pytest.mark.parametrize(
    ("name", "guarded", "unguarded"), [("heun", 0.4832, 5.2051), ("ipndm", 0.4968, 0.4987)]
)
def test_a_rough_step_is_taken_by_ddim(name, guarded, unguarded, monkeypatch):
    assert spread_of(name, COSINE.times(10), process=COSINE) == pytest.approx(guarded, abs=5e-5)
    monkeypatch.setattr(SolverStep, "rough", False)
    assert spread_of(name, COSINE.times(10), process=COSINE) == pytest.approx(unguarded, abs=5e-5)


def mixture_states(name, process, times, x):
    """The states of a sampler on a mixture of Gaussians."""
    return list(SAMPLERS[name](mixture_denoise(process), process, x, times, noise=None))


@pytest.mark.parametrize("name", ["heun", "ipndm"])
def test_a_steep_step_is_taken_by_ddim_and_leaves_no_history(name):
    """sigma / alpha falls 19-fold, then 21-fold, from a lambda that is not low."""
    process = sigma_process([0.1, 0.2, 4.2, 79.8])
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    steep, gentle = (mixture_states(each, process, [3, 2, 1, 0], x) for each in (name, "ddim"))
    if name == "heun":
        assert not torch.equal(steep[0].x, gentle[0].x)
    by_ddim = mixture_states("ddim", process, [2, 1], steep[0].x)[0]
    assert torch.allclose(steep[1].x, by_ddim.x, rtol=1e-12)
    anew = mixture_states(name, process, [1, 0], steep[1].x)
    assert torch.allclose(steep[-1].x, anew[-1].x, rtol=1e-12)


@pytest.mark.parametrize("name", ["heun", "ipndm"])
def test_a_step_from_almost_pure_noise_is_taken_by_ddim(name):
    """A lambda of -5.11, and then of -5.09; neither step is steep."""
    process = sigma_process([0.1, *(math.exp(v) for v in (3.0, 4.0, 5.09, 5.11))])
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    first, by_ddim = (mixture_states(each, process, [4, 2], x)[0] for each in (name, "ddim"))
    assert torch.equal(first.x, by_ddim.x)
    states = mixture_states(name, process, [4, 3, 2, 1], x)
    anew, gentle = (
        mixture_states(each, process, [3, 2, 1], states[0].x) for each in (name, "ddim")
    )
    assert torch.equal(states[-1].x, anew[-1].x)
    assert not torch.equal(states[2].x, gentle[1].x)


@pytest.mark.parametrize("n", [4, 10, 11, 50])
def test_a_long_run_of_ipndm_ends_with_a_ddim_step(n):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1, 1, 1)
    times = LINEAR.times(n)
    *_, before, end = mixture_states("ipndm", LINEAR, times, x)
    assert torch.equal(end.x, mixture_denoise(LINEAR)(before.x, times[-1]).x0) == (n > 10)


@pytest.mark.parametrize("target", ["v", "mu"])
@pytest.mark.parametrize("n", [11, 20, 50])
def test_a_long_clipped_run_of_ipndm_stays_in_range(n, target):
    """Even where the data is as sharp as can be: images of -1 and 1, and the best network."""
    images = torch.randint(0, 2, (5, 1, 4, 4), generator=generator(1)).double() * 2 - 1
    best = Denoiser(ideal_net(LINEAR, images), LINEAR, "x0")

    def net(x, t, **cond):
        guess = best(x, t.round().long())
        a, b = denoiser.target_at(t.round().long(), like=x)
        return a * guess.x0 + b * guess.eps

    denoiser = Denoiser(net, LINEAR, target)
    noise = torch.randn(50, 1, 4, 4, generator=generator(2))
    clipped = clip(denoiser, LINEAR)
    end = last(SAMPLERS["ipndm"](clipped, LINEAR, noise, LINEAR.times(n), noise=None))
    assert float(end.abs().max()) < 1 + 1e-5


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_first_step_from_zero_snr_is_ddim_and_leaves_no_history(name):
    process = zero_snr(1000)
    times = process.times(10)
    x = torch.randn(4, 1, 2, 2, generator=generator(), dtype=torch.float64)
    net = lambda x, t, **cond: (x.sin() - 0.3 * x).double()  # noqa: E731
    denoiser = Denoiser(net, process, "v")

    def run(name, times, x):
        return list(SAMPLERS[name](denoiser, process, x, times, noise=lambda k: 1 / 0))

    states = run(name, times, x)
    assert torch.allclose(states[0].x, run("ddim", times, x)[0].x, rtol=1e-12)
    assert torch.allclose(states[-1].x, run(name, times[1:], states[0].x)[-1].x, rtol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_time_that_comes_twice_changes_little(name):
    """As where the real times of karras are rounded."""
    times = [999, 800, 500, 500, 200, 50, 0, 0]
    once = sorted(set(times), reverse=True)
    assert spread_of(name, times) == pytest.approx(spread_of(name, once), rel=0.1)


# -- against a peer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "theirs", "options", "alike"),
    [
        ("dpmpp-2m", "DPMSolverMultistepScheduler", {}, 10),
        ("unipc", "UniPCMultistepScheduler", {"order": 2}, 10),
        ("unipc", "UniPCMultistepScheduler", {"order": 3}, 8),
    ],
)
def test_a_solver_takes_the_steps_of_diffusers(name, theirs, options, alike):
    """Which ends order 3 with a step of order 2 before the last."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, theirs)(
        beta_start=1e-4,
        beta_end=0.02,
        solver_order=options.get("order", 2),
        prediction_type="sample",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(10)
    denoise = mixture_denoise(LINEAR)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    times = LINEAR.times(10)
    assert scheduler.timesteps.tolist() == times
    ours = SAMPLERS[name](denoise, LINEAR, x, times, noise=lambda k: 1 / 0, **options)
    for t, state, _ in zip(scheduler.timesteps, ours, range(alike), strict=False):
        x = scheduler.step(denoise(x, int(t)).x0, t, x).prev_sample
        assert torch.allclose(state.x, x, atol=2e-6), int(t)


@pytest.mark.parametrize("z", [-1e-9, -1e-3, -0.3, -0.999, -1.001, -3.0, -7.5, -20.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_weights_of_unipc_rest_on_exact_integrals(k, z):
    """phi_k(z) is the integral over 0 ... 1 of e^((1 - u) z) u^(k-1) / (k-1)!."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u = (nodes + 1) / 2
    exact = (weights / 2 * np.exp((1 - u) * z) * u ** (k - 1)).sum() / math.factorial(k - 1)
    assert phi(k, z) == pytest.approx(exact, rel=1e-12)


# -- the variance of stochastic samplers ----------------------------------------------------------


@pytest.mark.parametrize("n", [20, 50, 100])
def test_the_second_order_of_the_stochastic_solver_shows(n):
    first, second = (
        abs(spread_of(name, LINEAR.times(n)) - 0.5) for name in ("ddpm", "dpmpp-2m-sde")
    )
    assert second < first / 2


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("n", "spacing"), [(10, "trailing"), (50, "trailing"), (10, "leading")])
def test_the_variance_of_ddim_follows_its_recursion(n, spacing, eta):
    """Var_s = a^2 Var_t + v, a and v from eps and x_0."""
    times, expected = LINEAR.times(n, spacing), 1.0
    for t, s in itertools.pairwise([*times, -1]):
        bar, bar_s = LINEAR.alpha_bar(t), LINEAR.alpha_bar(s)
        k = gain(math.sqrt(bar), math.sqrt(1 - bar))
        v = eta**2 * (1 - bar / bar_s) * (1 - bar_s) / (1 - bar)
        a = math.sqrt(bar_s) * k
        a += math.sqrt(1 - bar_s - v) * (1 - math.sqrt(bar) * k) / math.sqrt(1 - bar)
        expected = a**2 * expected + (v if s >= 0 else 0)
    assert spread_of("ddim", times, eta=eta) ** 2 == pytest.approx(expected, rel=1e-9)


# -- encoding -------------------------------------------------------------------------------------


def smooth_net(dtype):
    """A random network of two layers."""
    first = torch.randn(48, 48, generator=generator(1)).to(dtype) / 5
    second = torch.randn(48, 48, generator=generator(2)).to(dtype) / 7

    def net(x, t, **cond):
        hidden = (x.flatten(1) @ first + t[:, None].to(dtype) / 500).tanh()
        return (hidden @ second).reshape(x.shape)

    return net


ENCODED = {
    "gaussian": lambda process, dtype: exact_denoise(process),
    "narrow": lambda process, dtype: exact_denoise(process, spread=0.1),
    "mixture": lambda process, dtype: mixture_denoise(process, ((0.5, -0.3, 0.4), (0.5, 0.4, 0.5))),
    "network": lambda process, dtype: Denoiser(smooth_net(dtype), process, "v"),
}


@pytest.mark.parametrize("name", list(ENCODED))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "process", [COSINE, LINEAR, zero_snr(1000)], ids=["cosine", "linear", "zero"]
)
@pytest.mark.parametrize(("n", "spacing"), [(10, "trailing"), (50, "trailing"), (20, "karras")])
def test_what_was_encoded_comes_back(name, dtype, process, n, spacing):
    x0 = (torch.rand(3, 3, 4, 4, generator=generator(3)) * 2 - 1).to(dtype)
    denoise = ENCODED[name](process, dtype)
    times = process.times(n, spacing)
    states = list(encode(denoise, process, x0, times))
    assert [state.t for state in states] == times[::-1]
    assert states[-1].x.dtype == dtype
    back = last(SAMPLERS["ddim"](denoise, process, states[-1].x, times, noise=lambda k: 1 / 0))
    assert float((back - x0).abs().max()) < 1e-4


def test_a_tighter_tolerance_comes_nearer_and_images_are_encoded_by_themselves():
    denoiser = Denoiser(smooth_net(torch.float64), LINEAR, "v")
    x0 = torch.rand(3, 3, 4, 4, generator=generator(3), dtype=torch.float64) * 2 - 1
    times = LINEAR.times(20)
    code, alone = (last(encode(denoiser, LINEAR, x, times, tolerance=1e-12)) for x in (x0, x0[1:2]))
    back = last(SAMPLERS["ddim"](denoiser, LINEAR, code, times, noise=lambda k: 1 / 0))
    assert float((back - x0).abs().max()) < 1e-10
    assert torch.allclose(code[1:2], alone, atol=1e-8)


@pytest.mark.parametrize(
    "denoise",
    [
        clip(exact_denoise(LINEAR), LINEAR),
        Denoiser(lambda x, t: 0 * x, LINEAR, "x0"),
        Denoiser(lambda x, t: x / 0, LINEAR, "x0"),
    ],
    ids=["clamped", "constant", "infinite"],
)
def test_what_no_noise_leads_to_is_refused(denoise):
    x0 = torch.full((1, 1, 2, 2), 1.5, dtype=torch.float64)
    with pytest.raises(
        InvalidArgument, match="noise of these images was not found: at timestep 99 "
    ):
        list(encode(denoise, LINEAR, x0, LINEAR.times(10)))


def test_a_sampler_takes_its_options_and_no_other():
    assert sampler_options("ddim", eta=0.5, order=None) == {"eta": 0.5}
    assert sampler_options("heun", eta=None, order=None) == {}
    words = "eta: the sampler 'unipc' has none. It takes order. Samplers with it: ddim"
    with pytest.raises(InvalidArgument, match=words):
        sampler_options("unipc", eta=0.5, order=2)
    with pytest.raises(InvalidArgument, match="It takes no options"):
        sampler_options("heun", eta=0.0)
