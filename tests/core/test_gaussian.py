"""Gaussians against torch.distributions, and the likelihood of 8-bit pixels."""

import math

import pytest
import torch
from oracles import generator
from torch.distributions import Normal, kl_divergence

from diffuse_cli.core import Gaussian
from diffuse_cli.core import gaussian as gaussian_module


def v(level):
    return level / 127.5 - 1


@pytest.fixture
def use_exact_cdf(monkeypatch):
    """Replace the approximation of the distribution function by the function."""
    return lambda: monkeypatch.setattr(
        gaussian_module, "tanh_cdf", lambda z: 0.5 * torch.erfc(-z / math.sqrt(2))
    )


def scalar(value):
    return torch.tensor([value], dtype=torch.float64)


def test_kl_and_density_are_those_of_torch_distributions():
    draws = torch.randn(5, 50, generator=generator(), dtype=torch.float64)
    a, b = Gaussian(draws[0], draws[1]), Gaussian(draws[2], draws[3])
    p, q = (Normal(each.mean, (each.log_var / 2).exp()) for each in (a, b))
    assert torch.allclose(a.kl(b), kl_divergence(p, q), rtol=1e-12)
    assert bool((a.kl(a) == 0).all())
    assert torch.allclose(a.nll(draws[4]), -p.log_prob(draws[4]), rtol=1e-12)


@pytest.mark.parametrize("log_ratio", [1e-6, 1e-4, 1e-2, 0.1])
def test_kl_of_close_variances_keeps_its_digits_in_float32(log_ratio):
    """The error is a rounding of the log-ratio, not of 1: a bound has 1,000 such terms."""
    ratios = log_ratio * torch.linspace(-1, 1, 1001, dtype=torch.float64).float()
    means = log_ratio * torch.linspace(0, 1, 1001, dtype=torch.float64).float()
    narrow, wide = Gaussian(means, ratios), Gaussian(torch.zeros(1001), 0.0)
    exact = [Gaussian(g.mean.double(), g.log_var.double()) for g in (narrow, wide)]
    normals = [Normal(g.mean, (g.log_var / 2).exp()) for g in exact]
    found, expected = narrow.kl(wide), kl_divergence(*normals)
    assert found.dtype == torch.float32
    allowed = torch.finfo(torch.float32).eps * (expected + ratios.double().abs())
    exact_to = 4e-16  # which the oracle computes as a difference from 1
    assert bool(((found.double() - expected).abs() <= allowed + exact_to).all())


@pytest.mark.parametrize(
    ("level", "mean", "log_sigma", "tanh", "exact"),
    [
        (128, v(128), -math.log(255), -0.3821627573, -0.3817151463),
        (0, v(0), -math.log(255), -0.1729353566, -0.1727537790),
        (0, 0.0, 0.0, -1.8340951623, -1.8350468796),
    ],
)
def test_the_decoder_has_the_digits_of_both_forms(
    level, mean, log_sigma, tanh, exact, use_exact_cdf
):
    gaussian = Gaussian(scalar(mean), 2 * log_sigma)
    x = scalar(v(level))
    assert float(-gaussian.discrete_nll(x)) == pytest.approx(tanh, abs=1e-10)
    use_exact_cdf()
    assert float(-gaussian.discrete_nll(x)) == pytest.approx(exact, abs=1e-10)


def test_a_probability_is_floored_and_its_gradient_stays_finite():
    mean = torch.zeros(3, requires_grad=True)
    nll = Gaussian(mean, -20.0).discrete_nll(torch.tensor([v(0), v(200), v(255)]))
    nll.sum().backward()
    assert nll.detach().tolist() == pytest.approx([-math.log(1e-12)] * 3)
    assert bool(mean.grad.isfinite().all())


@pytest.mark.parametrize("levels", [2, 256, 65_536])
@pytest.mark.parametrize("exactly", [False, True], ids=["tanh", "exact"])
def test_the_bins_of_any_number_of_levels_share_one(levels, exactly, use_exact_cdf):
    """The outermost reach to infinity."""
    if exactly:
        use_exact_cdf()
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    step = 2 / (levels - 1)
    for mean, std in ((0.1, 2 * step), (0.95, 20 * step), (-1.3, 0.5), (0.0, 50)):
        for dtype in (torch.float64, torch.float32):
            model = Gaussian(torch.full((1,), mean, dtype=dtype), 2 * math.log(std))
            found = (-model.discrete_nll(x.to(dtype), levels)).exp()
            assert found.dtype == dtype
            within = levels * 1.1e-12 if dtype == torch.float64 else 1e-3
            assert float(found.double().sum()) == pytest.approx(1, abs=within)
        if std == 50:
            assert min(float(found[0]), float(found[-1])) > 0.48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_of_65536_levels_are_exact_in_both_tails(dtype, use_exact_cdf):
    import mpmath as mp

    use_exact_cdf()
    std = 0.01
    half = mp.mpf(1) / 65_535
    with mp.workdps(50):
        for level in (0, 30_000, 65_535):
            for away in (-5, -4, -2, -0.3, 0, 1, 3, 5):
                x = torch.tensor(level / 32_767.5 - 1, dtype=torch.float64).to(dtype)
                mean = x - away * std
                found = Gaussian(mean, 2 * math.log(std)).discrete_nll(x, 65_536)
                center = mp.mpf(float(x - mean))
                above = mp.ncdf((center + half) / std) if level < 65_535 else mp.mpf(1)
                below = mp.ncdf((center - half) / std) if level > 0 else mp.mpf(0)
                assert float(found) == pytest.approx(float(-mp.log(above - below)), abs=3e-3)
