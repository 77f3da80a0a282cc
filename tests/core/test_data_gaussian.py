"""Low frequencies of a data set, and a start of sampling with their variance: exact Gaussians."""

from __future__ import annotations

import json
import math

import pytest
import torch
from oracles import gaussian_denoise, generator, process_of

from diffuse_cli.core import SAMPLERS, InvalidArgument
from diffuse_cli.core import gaussian_start as low
from diffuse_cli.core.gaussian_start import LowFrequencies, measure, read

ALPHA, SIGMA = 0.3, math.sqrt(1 - 0.09)
SHAPES = [(1, 4), (2, 12), (1, 4, 3), (3, 9, 10), (2, 3, 5, 6)]


def samples(shape: tuple[int, ...], n: int = 40) -> torch.Tensor:
    """Samples whose channels go together, and brighter on one side."""
    noise = torch.randn(n, *shape, generator=generator(1), dtype=torch.float64)
    whole = torch.randn(n, 1, *[1] * (len(shape) - 1), generator=generator(2), dtype=torch.float64)
    return 0.2 * noise + whole + torch.linspace(-1, 1, shape[-1], dtype=torch.float64)


def matrix(found: LowFrequencies, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `make_initial_noise` does to noise: x = M z + c."""
    ones = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    offset = found.make_initial_noise(torch.zeros_like(ones[:1]), ALPHA, SIGMA)
    return (found.make_initial_noise(ones, ALPHA, SIGMA) - offset).flatten(1).T, offset.flatten()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_that_is_kept_is_there_at_the_start_and_nothing_else_changes(shape):
    x = samples(shape)
    found = measure([x])
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


def cosines(shape: tuple[int, ...]) -> torch.Tensor:
    """The orthonormal cosine transform of samples in a row."""
    whole = torch.eye(shape[0], dtype=torch.float64)
    for side in shape[1:]:
        k, n = torch.arange(side).double()[:, None], torch.arange(side).double() + 0.5
        waves = torch.cos(math.pi / side * k * n) * math.sqrt(2 / side)
        waves[0] /= math.sqrt(2)
        whole = torch.kron(whole, waves)
    assert torch.allclose(whole @ whole.T, torch.eye(len(whole), dtype=torch.float64), atol=1e-12)
    return whole


def test_channels_are_uncorrelated():
    x = samples((3, 9, 10))
    colors = torch.tensor(measure([x]).colors, dtype=torch.float64)
    apart = torch.einsum("ec,ncp->nep", colors, (x - x.mean(0)).flatten(2))
    covariance = torch.einsum("nep,nfp->ef", apart, apart) / len(x)
    assert torch.allclose(colors @ colors.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 1e-3
    assert float(covariance.diagonal().max()) > 50


@pytest.mark.parametrize("sampler", ["unipc", "ddim", "ddpm"])
def test_few_steps_from_it_keep_the_brightness_and_its_variance(sampler: str):
    """Exact denoiser of data whose mean brightness varies: five steps from pure noise lose a third
    of its deviation, five from the start lose nothing."""
    side, process = 16, process_of("cosine", 1000)
    basis = cosines((1, side, side))
    variance = torch.full((side * side,), 1e-3, dtype=torch.float64)
    variance[0] = 80.0
    mean = 0.3 * torch.ones(side * side, dtype=torch.float64)
    covariance = basis.T @ torch.diag(variance) @ basis
    denoise = gaussian_denoise(process, mean, covariance)
    table = torch.zeros(1, 8, 8, dtype=torch.float64)
    table[0, 0, 0] = 80.0
    means = torch.zeros(1, 8, 8, dtype=torch.float64)
    means[0, 0, 0] = 0.3 * side
    found = LowFrequencies((side, side), ((1.0,),), tuple(means.tolist()), tuple(table.tolist()))
    draw = generator(0)
    noise = torch.randn(4000, 1, side, side, generator=draw, dtype=torch.float64)
    noise[:, 0] -= noise.mean((1, 2, 3))[:, None, None]
    noise[:, 0] += torch.linspace(-1, 1, 4000, dtype=torch.float64)[:, None, None] / side * 3**0.5

    def spread(log_snr: float, begun: bool) -> tuple[float, float]:
        times = process.times(5, log_snr=log_snr)
        alpha, sigma = process.alpha_sigma(times[0], like=noise)
        x = found.make_initial_noise(noise, alpha, sigma) if begun else noise
        later = generator(3)

        def fresh(k: int) -> torch.Tensor:
            return torch.randn(noise.shape, generator=later, dtype=torch.float64)

        *_, last = SAMPLERS[sampler](denoise, process, x, times, noise=fresh)
        brightness = last.x.flatten(1).mean(1)
        return float(brightness.mean()), float(brightness.std())

    wanted = math.sqrt(80.0) / side
    mean_found, deviation = spread(found.log_snr, True)
    assert mean_found == pytest.approx(0.3, abs=0.02)
    assert deviation == pytest.approx(wanted, rel=0.12)
    assert spread(-math.inf, False)[1] < 0.8 * deviation


def test_where_it_begins_follows_from_the_size():
    sizes = {(32, 32): -4.0, (64, 64): -4 - math.log(4), (1024,): -4.0, (8, 8, 16): -4.0}
    for size, wanted in sizes.items():
        found = LowFrequencies(size, (), (), ()).log_snr
        assert found == pytest.approx(wanted)
        process = process_of("cosine", 1000)
        for spacing in ("trailing", "early", "wide", "linspace", "karras"):
            first, *_, last = process.times(6, spacing, log_snr=found)
            assert process.log_snr(first) <= found < process.log_snr(first - 1), spacing
            assert last < first


def test_all_times_are_there_where_no_noise_is_so_strong():
    process = process_of("linear", 10)
    assert process.times(10, log_snr=-1e9) == process.times(10)
    with pytest.raises(InvalidArgument, match="1 to 3, the timesteps up to the start's noise"):
        process.times(4, log_snr=process.log_snr(2))
    assert process.times(3, log_snr=process.log_snr(2)) == [2, 1, 0]


def test_it_is_the_same_after_json():
    found = measure([samples((2, 9, 10))])
    again = read(json.loads(json.dumps(found.plain)), 2, (9, 10))
    assert again == found


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("colors", [[1.0]], "colors must be finite numbers of shape"),
        ("colors", None, "colors must be a table"),
        ("mean", [[0.0, "1"]], "mean must be a table"),
        ("mean", [[math.nan] * 4] * 2, "mean must be finite"),
        ("variance", [[-1.0] * 4] * 2, "variance must not be negative"),
        ("variance", [[[1.0]]], "variance must be finite numbers of shape"),
    ],
)
def test_other_tables_are_refused(name: str, value: object, said: str):
    plain = {**measure([samples((2, 4))]).plain, name: value}
    with pytest.raises(InvalidArgument) as caught:
        read(plain, 2, (4,))
    assert said in f"{caught.value.argument} {caught.value}"


def test_a_constant_data_set_has_no_variance():
    found = measure([torch.full((3, 2, 5, 5), 0.5)])
    begun = found.make_initial_noise(torch.zeros(1, 2, 5, 5), 1.0, 0.0)
    assert torch.allclose(begun, torch.full((1, 2, 5, 5), 0.5), atol=1e-5)


def test_batches_are_measured_as_one():
    x = samples((3, 9, 10))
    whole, parts = measure([x]), measure(iter(x.split(7)))
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        assert torch.allclose(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no samples"):
        measure([])
