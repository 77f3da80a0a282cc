"""Power by frequency: white noise, waves, power laws, Parseval, and what is said of it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from test_metrics import spread

from diffuse_cli.metrics import METRICS, Facts, Words, estimates, remarks, spectrum

SIZES = [(64,), (7,), (16, 16), (12, 31), (1, 9), (6, 7, 8), (4, 10, 3)]


def noise(seed: int, n: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape))


def fields(seed: int, n: int, size: tuple[int, ...], slope: float, filtered=None) -> np.ndarray:
    """Gaussian random fields on a torus of power f^-slope, (n, 1, *size)."""
    axes = np.meshgrid(*[np.fft.fftfreq(side) for side in size], indexing="ij")
    radius = np.sqrt(sum(np.square(a) for a in axes))
    radius.flat[0] = np.inf
    root = radius ** (-slope / 2)
    root = root if filtered is None else root * filtered(radius)
    white = np.fft.fftn(noise(seed, n, size), axes=range(1, len(size) + 1))
    return np.fft.ifftn(white * root, axes=range(1, len(size) + 1)).real[:, None]


def found(real, fake, more=None):
    more = real[:0] if more is None else more
    side = SimpleNamespace(spectra=spectrum.measure_spectra(real, fake, more))
    return spectrum.compute(side), spectrum.details(side)


@pytest.mark.parametrize("size", SIZES)
def test_the_shells_hold_all_the_variance(size):
    """Parseval: powers by the number of frequencies are points times the variance."""
    shells = spectrum.shells(size)
    points = math.prod(size)
    assert shells.counts.sum() == points - 1
    samples = 3 * noise(0, 4, (2, *size)) + 50
    powers = spectrum.powers(samples, shells, np.array([1.0, 4.0]))
    variances = samples.reshape(4, 2, -1).var(2)
    expected = points * (variances[:, 0] + variances[:, 1] / 4) / 2
    assert powers @ shells.counts == pytest.approx(expected, rel=1e-10)
    assert (np.diff(shells.frequencies) > 0).all()
    assert shells.frequencies.max() <= math.sqrt(len(size)) / 2 + 1e-12


@pytest.mark.parametrize("size", [(64,), (16, 16), (12, 31), (6, 7, 8)])
def test_white_noise_is_flat(size):
    _, told = found(noise(0, 200, (3, *size)), 2 * noise(1, 200, (3, *size)))
    json.dumps(told)
    n = len(told["real"])
    for name, level in (("real", 1), ("generated", 4)):
        off = (np.array(told[name]) - level) / np.array(told[f"{name}_standard_error"])
        assert np.square(off).sum() < n + 4 * math.sqrt(2 * n)


@pytest.mark.parametrize(
    ("size", "wave"),
    [((64,), (5,)), ((20, 30), (3, 4)), ((16, 16), (8, 8)), ((8, 12, 6), (1, 2, 0))],
)
def test_a_wave_is_in_its_shell(size, wave):
    places = np.meshgrid(*[np.arange(side) for side in size], indexing="ij")
    phase = sum(2 * np.pi * k * x / side for k, x, side in zip(wave, places, size, strict=True))
    sample = np.cos(phase + 0.3 * (wave != (8, 8)))[None, None]
    shells = spectrum.shells(size)
    powers = spectrum.powers(sample, shells, np.ones(1))[0] * shells.counts
    frequency = math.sqrt(sum((k / side) ** 2 for k, side in zip(wave, size, strict=True)))
    own = int(np.abs(shells.frequencies - frequency).argmin())
    assert powers[own] == pytest.approx(powers.sum(), rel=1e-9)
    assert powers.sum() == pytest.approx(math.prod(size) * sample.var(), rel=1e-9)


@pytest.mark.parametrize(("size", "slope"), [((128,), 1.0), ((32, 48), 2.0), ((16, 16, 16), 3.0)])
def test_a_power_law_is_found_within_its_error(size, slope):
    """Each shell's power against the mean of the law over its own frequencies."""
    shells = spectrum.shells(size)
    axes = [np.fft.fftfreq(side) for side in size[:-1]] + [np.fft.rfftfreq(size[-1])]
    radius = np.sqrt(sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij"))).ravel()
    law = np.add.reduceat(radius[shells.order] ** -slope * shells.weights, shells.starts)
    law /= shells.counts
    samples = fields(0, 120, size, slope)
    powers = spectrum.powers(samples, shells, np.ones(1))
    errors = powers.std(0, ddof=1) / math.sqrt(120)
    _, told = found(samples, samples)
    of_told = np.array(told["real_standard_error"]) / told["real"]
    assert of_told == pytest.approx(errors / powers.mean(0))
    off = (powers.mean(0) - law) / errors
    n = len(off)
    assert np.square(off).sum() < n + 4 * math.sqrt(2 * n)
    slopes = np.polyfit(np.log(shells.frequencies), np.log(powers.mean(0)), 1)
    assert slopes[0] == pytest.approx(-slope, abs=0.1)


def test_long_signals_have_few_shells():
    shells = spectrum.shells((4096,))
    assert 40 < len(shells.counts) <= 64
    assert shells.frequencies[:5] == pytest.approx(np.arange(1, 6) / 4096)


def test_distances_are_what_the_definition_says():
    real, fake = fields(0, 30, (16, 16), 2), fields(1, 30, (16, 16), 1.5)
    values, told = found(real, fake)
    gaps = 10 * np.log10(np.array(told["generated"]) / np.array(told["real"]))
    assert values["spectral_distance"] == pytest.approx(math.sqrt(np.square(gaps).mean()))
    doubled, _ = found(real, math.sqrt(2) * real)
    assert doubled["spectral_distance"] == pytest.approx(10 * math.log10(2))
    assert doubled["fine_detail"] == pytest.approx(10 * math.log10(2))
    assert found(real, real)[0]["spectral_distance"] == 0
    assert all(type(v) is float and np.isfinite(v) for v in values.values())


@pytest.mark.parametrize(("slope", "low", "high"), [(2.0, 0.85, 2.2), (1.5, 0.8, 1.25)])
def test_errors_cover_repeated_draws(slope, low, high):
    size = (12, 12)
    sides = ((fields(2 * i, 30, size, 2), fields(2 * i + 1, 40, size, slope)) for i in range(60))
    runs = [found(*both)[0] for both in sides]
    for key, most in (("spectral_distance", high), ("fine_detail", 1.3)):
        assert low < spread(runs, key)[2] < most, key


def test_the_order_and_the_block_change_nothing(monkeypatch):
    real, fake, more = (fields(k, 30, (12, 10), 2) for k in range(3))
    whole = found(real, fake, more)[0]
    monkeypatch.setattr(estimates, "AT_ONCE", 500)
    assert found(real[::-1], fake[::-1], more[::-1])[0] == pytest.approx(whole, rel=1e-9)


def test_channels_of_other_units_count_alike():
    real, fake = noise(0, 20, (2, 9, 9)), noise(1, 20, (2, 9, 9))
    plain, told = found(real, fake)
    unit = np.array([1e-5, 1e7])[:, None, None]
    scaled, same = found(unit * real, unit * fake)
    assert scaled == pytest.approx(plain, rel=1e-9)
    assert same["real"] == pytest.approx(told["real"])


@pytest.mark.parametrize("shape", [(3, 1), (1, 1, 1), (1, 5, 5)])
def test_what_never_varies_has_no_spectrum(shape):
    flat = np.full((4, *shape), 7.3, np.float32)
    assert found(flat, flat)[0] == {}
    METRICS["spectrum"].details(SimpleNamespace(spectra=spectrum.measure_spectra(flat, flat, flat)))


def test_the_floor_is_real_samples_against_others():
    real, fake, more = (fields(k, 40, (12, 12), 2) for k in range(3))
    floor = found(real, fake, more)[0]["spectral_distance_floor"]
    assert floor == pytest.approx(found(real, more)[0]["spectral_distance"])


# -- words ----------------------------------------------------------------------------------------


def said(fake, real=None):
    real = fields(0, 150, (24, 24), 2) if real is None else real
    values, told = found(real, fake)
    facts = Facts(values, 9, 9, 0, True, 256, {"spectrum": told}, Words("images", "pixels"))
    [remark] = [r for r in remarks(facts) if r.kind == "fine detail"]
    return remark.level, remark.says


def test_blur_and_noise_are_named():
    soft = fields(1, 150, (24, 24), 2, lambda f: np.exp(-3 * np.minimum(f, 1) ** 2))
    level, words = said(soft)
    assert level == "poor"
    assert words.startswith("too low, as in blurred images: in waves shorter than 4 pixels")
    assert "dB less" in words
    drawn = fields(1, 150, (24, 24), 2)
    level, words = said(drawn + 4 * noise(2, 150, (1, 24, 24)))
    assert (level, "too high, as in noisy images" in words) == ("poor", True)
    assert said(drawn)[0] == "fine"
