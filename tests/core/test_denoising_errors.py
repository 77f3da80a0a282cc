"""The variance `optimal`, and the errors of x_0 that it reads."""

import math
from itertools import product

import pytest
import torch
from oracles import ERRORS, gaussian_denoise, generator, process_of, zero_snr

from diffuse_cli.core import VARIANCES, Denoiser, InvalidArgument, bits_per_dim
from diffuse_cli.core import denoising_errors as errors
from diffuse_cli.core.denoising_errors import DenoisingErrors, average, choose_timesteps

LIKE = torch.zeros(1, 1, 1, 1, dtype=torch.float64)


def gaussian_errors(process, *variances):
    """Var(x_0 | x_t) at every timestep, the mean over independent Gaussian dimensions."""
    bars = process.alpha_bars[:, None]
    own = torch.tensor(variances, dtype=torch.float64)
    found = (own * (1 - bars) / (bars * own + 1 - bars)).mean(1)
    levels = process.log_snr(torch.arange(process.num_timesteps))
    return DenoisingErrors(tuple(levels.tolist()), tuple(found.tolist()))


def gaussian_denoiser(process, variance, *spreads):
    """The exact denoiser of dimensions in a row with these variances, which are floats."""
    own = torch.tensor(spreads, dtype=torch.float64)

    def net(x, t):
        bar = process.alpha_bars[(t.double() * process.num_timesteps / 1000).round().long()]
        bar = bar.reshape(-1, 1, 1)
        return bar.sqrt() * own * x / (bar * own + 1 - bar)

    known = gaussian_errors(process, *spreads)
    return Denoiser(net, process, "x0", variance, None, errors=known)


def corners(dimensions):
    """Every combination of signs: any mean of a quadratic is that over N(0, 1), exactly."""
    return torch.tensor(list(product((-1.0, 1.0), repeat=dimensions)), dtype=torch.float64)


@pytest.mark.parametrize("count", [10, 30, 100])
@pytest.mark.parametrize("spread", [0.25, 1.0])
def test_the_bound_of_gaussian_data_is_their_entropy(count, spread):
    """With the exact mean and variance each reverse step is exact, however few there are."""
    process = process_of("cosine", count)
    x0, noise = corners(2).T.reshape(2, -1, 1, 1)
    x0 = math.sqrt(spread) * x0
    bits = {}
    for name in ("small", "large", "optimal"):
        denoiser = gaussian_denoiser(process, name, spread)
        bits[name] = float(bits_per_dim(denoiser, x0, noise=lambda t: noise).total.mean())
    entropy = 0.5 * math.log2(2 * math.pi * math.e * spread)
    bar = float(process.alpha_bars[-1])
    last = bar * spread + 1 - bar
    prior = 0.5 * (last - 1 - math.log(last)) / math.log(2)
    assert bits["optimal"] == pytest.approx(entropy + prior, abs=1e-9)
    assert bits["optimal"] < bits["small"]
    # Its decoder has the variance of N(0, 1) data. The density of a narrower one is higher.
    assert bits["optimal"] < bits["large"] + 1e-4


def test_of_correlated_data_it_is_the_mean_over_the_eigenvalues():
    process = process_of("cosine", 20)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    signs = corners(4)
    x0, noise = (signs[:, :2] @ torch.linalg.cholesky(covariance).T)[:, None], signs[:, None, 2:]
    exact = gaussian_denoise(process, torch.zeros_like(covariance[0]), covariance)

    def net(x, t):
        return torch.cat([exact(x[:1], int(t[0] * 20 / 1000 + 0.5)).x0 for x in x.split(1)])

    denoiser, known = Denoiser(net, process, "x0", levels=None), gaussian_errors(process, 0.2, 1.8)
    for t in (2, 10, 19):
        found = denoiser.squared_error(x0, torch.full((len(x0),), t), noise, {})
        assert float(found.mean()) == pytest.approx(known.errors[t], rel=1e-9)


@pytest.mark.parametrize(("count", "expected"), [(10, 1.341), (30, 1.0936)])
def test_the_bound_of_a_pixel_lies_between_the_fixed_and_the_learned_variances(count, expected):
    process = process_of("cosine", count)
    x0 = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(4_000)[:, None]
    quantiles = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000
    noise = torch.special.ndtri(quantiles).repeat(2)[:, None]

    def net(x, t):
        bar = process.alpha_bars[(t.double() * count / 1000).round().long()][:, None]
        return torch.tanh(bar.sqrt() * x / (1 - bar))

    plain = Denoiser(net, process, "x0", levels=2)
    times = choose_timesteps(process)
    found = {t: plain.squared_error(x0, torch.full((len(x0),), t), noise, {}) for t in times}
    bits = {}
    for name in ("small", "large", "optimal"):
        denoiser = plain.with_variance(name, average(times, found))
        bits[name] = float(bits_per_dim(denoiser, x0, noise=lambda t: noise).total.mean())
    assert bits["optimal"] == pytest.approx(expected, abs=2e-3)
    assert bits["optimal"] < min(bits["small"], bits["large"])


# -- the errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [process_of("cosine", 1000), zero_snr(), process_of("flow", 3)])
def test_the_timesteps_to_measure_span_the_process(process):
    found = choose_timesteps(process)
    levels = list(found.values())
    assert next(iter(found)) == 0
    assert len(found) <= errors.POINTS
    assert levels == sorted(set(levels), reverse=True)
    assert levels[-1] == pytest.approx(max(process.log_snr(process.num_timesteps - 1), -15), abs=1)


def test_errors_are_interpolated_over_log_snr():
    known = DenoisingErrors((2.0, 0.0), (0.01, 0.09))
    assert known.interpolate(1.0) == pytest.approx(0.03)
    assert known.interpolate([9.0, 2.0, 0.0, -math.inf]).tolist() == pytest.approx(
        [0.01, 0.01, 0.09, 0.09]
    )


def test_a_grid_is_enough():
    """Of 32 timesteps the errors of all thousand follow to a percent."""
    process = process_of("cosine", 1000)
    exact = gaussian_errors(process, 0.01, 0.25)
    times = choose_timesteps(process)
    grid = DenoisingErrors(tuple(times.values()), tuple(exact.errors[t] for t in times))
    ratio = grid.interpolate(exact.log_snrs) / torch.tensor(exact.errors).double().numpy()
    assert abs(ratio - 1).max() < 0.03


def test_errors_are_of_the_clipped_estimate_unless_data_are_floats():
    x0, t = LIKE + 0.5, torch.tensor([3])
    net = lambda x, t: x * 0 + 3  # noqa: E731
    for levels, expected in ((256, 0.25), (None, 6.25)):
        denoiser = Denoiser(net, process_of("cosine", 10), "x0", levels=levels)
        assert float(denoiser.squared_error(x0, t, LIKE, {})) == pytest.approx(expected)


def test_means_are_rounded_and_positive():
    parts = {0: torch.zeros(3), 4: torch.tensor([0.1, 0.2, 1.0])}
    found = average({0: 8.0, 4: -1.0}, parts)
    assert found == DenoisingErrors((8.0, -1.0), (errors.LEAST, 0.43333))
    assert errors.read(found.plain) == found


def test_a_respaced_process_reads_the_same_errors():
    full = process_of("cosine", 50)
    denoiser = gaussian_denoiser(full, "optimal", 0.25)
    times = full.times(7, "karras")
    short = denoiser.respaced(times)
    for i, (t, s) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        ours = short(LIKE[0], 6 - i).log_var(6 - i)
        assert float(ours) == pytest.approx(float(denoiser(LIKE[0], 0).log_var(t, s)), rel=1e-6)
    log_var = gaussian_denoiser(full, "optimal", 1.0)(LIKE[0], 40).log_var
    for s in (39, 20, 0):
        beta = full.coefficients(40, s, like=LIKE).log_beta
        assert float(log_var(40, s)) == pytest.approx(beta), "of normal data, it is beta"


@pytest.mark.parametrize(
    "values",
    [
        {}, [], None, {"log_snrs": [1.0]}, {"log_snrs": 3, "errors": [1]},
        *({"log_snrs": log_snrs, "errors": own} for log_snrs, own in [
            ([], []), ([1.0], [0.1, 0.2]), ([1.0, 1.0], [0.1, 0.2]), ([0.0, 1.0], [0.1, 0.2]),
            ([1.0], [0.0]), ([1.0], [-1]), ([1.0], [math.nan]), ([math.inf], [1]),
            ([1.0], ["x"]), ([10**400], [1]),
        ]),
    ],
    ids=lambda values: str(values)[:60],
)  # fmt: skip
def test_other_values_are_refused(values):
    with pytest.raises(InvalidArgument):
        errors.read(values)


# -- the denoiser ---------------------------------------------------------------------------------


def test_without_errors_it_is_refused():
    with pytest.raises(InvalidArgument, match="measured at the end of training") as refused:
        Denoiser(None, process_of("cosine", 10), "v", "optimal")
    assert "--variance optimal" in refused.value.hint


def test_any_variance_can_replace_a_learned_one():
    process = process_of("cosine", 10)
    learned = Denoiser(lambda x, t: torch.cat([x, x + 1], 1), process, "x0", "learned")
    x = torch.randn(2, 3, 4, generator=generator())
    for name in ("small", "large", "optimal"):
        found = learned.with_variance(name, ERRORS)(x, 5)
        assert torch.equal(found.x0, learned(x, 5).x0)
        pair = process.coefficients(5, like=x)
        assert float(found.log_var(5)) == float(VARIANCES[name](pair, ERRORS.errors[0]))
