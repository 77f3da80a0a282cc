"""The Gaussian of a data set, as a start of sampling and as a reference: exact Gaussians."""

import json
import math

import pytest
import torch
from oracles import gaussian_denoise, generator, process_of

from diffuse_cli.core import TARGETS, Denoiser, InvalidArgument, loss
from diffuse_cli.core import data_gaussian as low
from diffuse_cli.core.data_gaussian import DataGaussian, measure, read
from diffuse_cli.core.denoiser import Reference

ALPHA, SIGMA = 0.3, math.sqrt(1 - 0.09)
SHAPES = [(1, 4), (2, 12), (1, 4, 3), (3, 9, 10), (2, 3, 5, 6)]


def samples(shape, n=40):
    """Samples whose channels go together, and brighter on one side."""
    noise = torch.randn(n, *shape, generator=generator(1), dtype=torch.float64)
    whole = torch.randn(n, 1, *[1] * (len(shape) - 1), generator=generator(2), dtype=torch.float64)
    return 0.2 * noise + whole + torch.linspace(-1, 1, shape[-1], dtype=torch.float64)


def matrix(found, shape):
    """What `make_initial_noise` does to noise: x = M z + c."""
    ones = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    offset = found.make_initial_noise(torch.zeros_like(ones[:1]), ALPHA, SIGMA)
    return (found.make_initial_noise(ones, ALPHA, SIGMA) - offset).flatten(1).T, offset.flatten()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_that_is_kept_is_there_at_the_start_and_nothing_else_changes(shape):
    x = samples(shape)
    found = measure(lambda: [x])
    made, offset = matrix(found, shape)
    flat = x.flatten(1)
    covariance = torch.cov(flat.T, correction=0)
    # The projection on the lowest frequencies, from a start where they alone have any variance.
    kept = torch.zeros(shape)
    kept[(slice(None), *(slice(n) for n in low.count_frequencies(shape[1:])))] = 1
    basis = cosines(shape)
    lowest = basis.T @ torch.diag(kept.flatten().double()) @ basis
    assert torch.allclose(offset, ALPHA * lowest @ flat.mean(0), atol=1e-5)
    variance = made @ made.T
    rest = torch.eye(len(lowest), dtype=torch.float64) - lowest
    assert torch.allclose(rest @ variance @ rest, SIGMA**2 * rest, atol=1e-6)
    # Frequencies are taken for independent: only the variance of each agrees, in its channels.
    colors = torch.tensor(found.colors, dtype=torch.float64)
    mixed = torch.kron(colors, torch.eye(math.prod(shape[1:]), dtype=torch.float64)) @ basis
    wanted = ALPHA**2 * mixed @ covariance @ mixed.T
    wanted = wanted.diagonal() * kept.flatten() + SIGMA**2
    assert torch.allclose((mixed @ variance @ mixed.T).diagonal(), wanted, rtol=1e-4)


def cosines(shape):
    """The orthonormal cosine transform of samples in a row."""
    whole = torch.eye(shape[0], dtype=torch.float64)
    for side in shape[1:]:
        k, n = torch.arange(side).double()[:, None], torch.arange(side).double() + 0.5
        waves = torch.cos(math.pi / side * k * n) * math.sqrt(2 / side)
        waves[0] /= math.sqrt(2)
        whole = torch.kron(whole, waves)
    assert torch.allclose(whole @ whole.T, torch.eye(len(whole), dtype=torch.float64), atol=1e-12)
    return whole


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, -1), (-1, 2, -1), (-1, -1, 3)], ids=str)
def test_channels_are_uncorrelated(signs):
    x = samples((3, 9, 10)) * torch.tensor(signs).view(3, 1, 1)
    colors = torch.tensor(measure(lambda: [x]).colors, dtype=torch.float64)
    apart = torch.einsum("ec,ncp->nep", colors, (x - x.mean(0)).flatten(2))
    covariance = torch.einsum("nep,nfp->ef", apart, apart) / len(x)
    assert torch.allclose(colors @ colors.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 1e-3
    assert float(covariance.diagonal().max()) > 50


def test_where_it_begins_follows_from_the_size():
    sizes = {(32, 32): -4.0, (64, 64): -4 - math.log(4), (1024,): -4.0, (8, 8, 16): -4.0}
    process, few = process_of("cosine", 1000), process_of("linear", 10)
    for size, wanted in sizes.items():
        found = DataGaussian(size, (), (), ()).log_snr
        assert found == pytest.approx(wanted)
        for spacing in ("trailing", "early", "wide", "linspace", "karras"):
            first, *_, last = process.times(6, spacing, log_snr=found)
            assert process.log_snr(first) <= found < process.log_snr(first - 1), spacing
            assert last < first
    assert few.times(10, log_snr=-1e9) == few.times(10), "where no noise is so strong"
    with pytest.raises(InvalidArgument, match="1 to 3, the timesteps up to the start's noise"):
        few.times(4, log_snr=few.log_snr(2))
    assert few.times(3, log_snr=few.log_snr(2)) == [2, 1, 0]


def test_batches_are_measured_as_one_and_it_is_the_same_after_json():
    x = samples((3, 9, 10))
    for bands in (True, False):
        whole, parts = (measure(lambda b=b: b, bands=bands) for b in ([x], x.split(7)))
        assert (whole.bands is not None) == bands
        assert read(json.loads(json.dumps(whole.plain)), 3, (9, 10)) == whole
        for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.allclose(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no samples"):
        measure(list)


TABLES = [
    ("colors", [[1.0]], "colors must be finite numbers of shape"),
    ("colors", None, "colors must be a table"), ("mean", [[0.0, "1"]], "mean must be a table"),
    ("mean", [[math.nan] * 4] * 2, "mean must be finite"),
    ("variance", [[-1.0] * 4] * 2, "variance must not be negative"),
    ("bands", [[-1.0] * 4] * 2, "bands must not be negative"),
    ("bands", [[1.0] * 3] * 2, "bands must be finite numbers of shape"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "said"), TABLES)
def test_other_tables_are_refused(name, value, said):
    plain = {**measure(lambda: [samples((2, 4))]).plain, name: value}
    with pytest.raises(InvalidArgument) as caught:
        read(plain, 2, (4,))
    assert said in f"{caught.value.argument} {caught.value}"


def test_a_constant_data_set_has_no_variance():
    constant = torch.full((3, 2, 5, 5), 0.5)
    found = measure(lambda: [constant])
    begun = found.make_initial_noise(0 * constant, 1.0, 0.0)
    assert torch.allclose(begun, constant, atol=1e-5)
    assert torch.allclose(found.denoise(0 * constant, 1.0, 0.5), constant, atol=1e-4)


# -- the filter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("level", [0.02, 0.7, 0.999])
def test_it_denoises_as_the_exact_gaussian_does(shape, level):
    """Of data whose covariance is diagonal in its transform, with one variance in each band."""
    x = samples(shape)
    found = measure(lambda: [x])
    basis, size = cosines(shape), shape[1:]
    colors = torch.tensor(found.colors, dtype=torch.float64)
    mixed = torch.kron(colors, torch.eye(math.prod(size), dtype=torch.float64)) @ basis
    bands = [low.assign_bands(side, size) for side in size]
    whole = torch.tensor(found.bands, dtype=torch.float64).clamp(min=low.LEAST)
    for dim, own in enumerate(bands, 1):
        whole = whole.index_select(dim, torch.tensor(own))
    mean = torch.zeros_like(whole)
    known = torch.tensor(found.mean, dtype=torch.float64)
    mean[(slice(None), *map(slice, known.shape[1:]))] = known
    process = process_of("cosine", 1000)
    t = round(process.time_at(math.log(level**-2 - 1)))
    exact = gaussian_denoise(
        process, mixed.T @ mean.flatten(), mixed.T @ torch.diag(whole.flatten()) @ mixed
    )
    alpha, sigma = process.alpha_sigma(t, like=x)
    noise = torch.randn(x.shape, generator=generator(5), dtype=torch.float64)
    x_t = alpha * x + sigma * noise
    column = torch.full((len(x), *[1] * len(shape)), 1.0, dtype=torch.float64)
    for scale in (1, column):
        with torch.inference_mode():
            guess = found.denoise(x_t, alpha * scale, sigma * scale)
        assert torch.allclose(guess, exact(x_t, t).x0, atol=1e-5)
    x_t.requires_grad_()
    found.denoise(x_t, alpha, sigma).sum().backward()
    assert x_t.grad is not None, "of what was computed for inference before"


def test_a_band_has_the_mean_variance_of_its_frequencies():
    draw = torch.randn(500, 1, 40, generator=generator(0), dtype=torch.float64)
    scale = torch.linspace(2, 0.1, 40, dtype=torch.float64)
    x = (draw * scale) @ cosines((1, 40))
    found = measure(lambda: [x])
    bands = torch.tensor(low.assign_bands(40, (40,)))
    assert bands[:8].tolist() == list(range(8))
    assert bands.diff().unique().tolist() == [0, 1]
    own = (x @ cosines((1, 40)).T).square().mean((0, 1))
    for band in range(8, int(bands.max()) + 1):
        expected = float(own[bands == band].mean())
        assert found.bands[0][band] == pytest.approx(expected, rel=1e-5)


def corrected(found, process, target, by):
    """A denoiser whose network finds `by` everywhere, and checks what it sees."""

    def net(x, t):
        x_t, guess = x.chunk(2, 1)
        bars = torch.tensor([process.alpha_bar(float(s)) for s in t], dtype=torch.float64)
        alpha, sigma = (
            v.reshape(-1, *[1] * (x.ndim - 1)) for v in (bars.sqrt(), (1 - bars).sqrt())
        )
        assert torch.allclose(guess, found.denoise(x_t, alpha, sigma), atol=1e-5)
        return torch.full_like(x_t, by)

    return Denoiser(net, process, target, reference=Reference(found.denoise, found.scale))


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "mu"])
def test_a_network_sees_the_estimate_and_adds_its_output_in_its_scale(target):
    process, x = process_of("cosine", 1000), samples((1, 12, 12), n=6)
    found = measure(lambda: [x])
    denoiser, plain = (corrected(found, process, target, by) for by in (0.5, 0.0))
    for t in (0, 400, 900, 400.5, torch.tensor([0, 5, 300, 500, 800, 998])):
        alpha, sigma = process.alpha_sigma(t, like=x)
        guess, wiener = denoiser(x, t), found.denoise(x, alpha, sigma)
        assert torch.allclose(plain(x, t).x0, wiener, atol=1e-6)
        added = 0.5 * found.scale(alpha, sigma, x)
        assert torch.allclose(guess.x0, (wiener + added).expand_as(x), atol=1e-6)
        assert torch.allclose(alpha * guess.x0 + sigma * guess.eps, x, atol=1e-6)
        exact = {"x0": guess.x0, "eps": guess.eps}.get(target)
        assert exact is None or torch.allclose(guess.raw, exact, atol=1e-6)
    few = denoiser.respaced([0, 400, 900])
    assert torch.allclose(few(x, 1).x0, denoiser(x, 400).x0, atol=1e-6)
    assert torch.allclose(few.with_variance("large")(x, 1).x0, denoiser(x, 400).x0, atol=1e-6)


def test_the_target_is_what_the_loss_compares():
    """A network that corrects to x_0 itself has no loss, in any target."""
    process, x = process_of("cosine", 1000), samples((1, 6, 6), n=3)
    found = measure(lambda: [x])
    noise = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    for target in TARGETS:
        t = torch.tensor([3, 500, 990])
        alpha, sigma = process.alpha_sigma(t, like=x)
        off = x - found.denoise(alpha * x + sigma * noise, alpha, sigma)
        right = off / found.scale(alpha, sigma, x)
        denoiser = Denoiser(
            lambda *_, right=right: right, process, target,
            reference=Reference(found.denoise, found.scale),
        )  # fmt: skip
        assert float(loss(denoiser, x, t=t, noise=noise).max()) < 1e-12


def test_the_scale_is_the_error_of_the_filter_and_that_of_the_data_without_any_signal():
    x = samples((1, 12, 12), n=200)
    found = measure(lambda: [x])
    for log_snr in (8, 3, 0):
        bar = torch.tensor(float(log_snr), dtype=torch.float64).sigmoid()
        alpha, sigma = float(bar.sqrt()), float((1 - bar).sqrt())
        noise = torch.randn(x.shape, generator=generator(4), dtype=torch.float64)
        left = (found.denoise(alpha * x + sigma * noise, alpha, sigma) - x).square().mean().sqrt()
        assert float(found.scale(alpha, sigma, x)) == pytest.approx(float(left), rel=0.1)
    spread = (x - found.denoise(0 * x, 0.0, 1.0)).square().mean().sqrt()
    assert float(found.scale(0.0, 1.0, x)) == pytest.approx(float(spread), rel=0.02)
