"""Metrics against torch-fidelity, against brute force, and against repeated draws."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffuse_cli.errors import UsageError, lookup
from diffuse_cli.events import finish
from diffuse_cli.features import FEATURES, extract
from diffuse_cli.metrics import METRICS, frechet, kid

RELATIVE = 1e-5

OF_FEATURES = ["kid", "frechet", "manifold"]


def drawn(seed: int, n: int, d: int = 24, shift: float = 0.0) -> np.ndarray:
    """Correlated non-negative features, as a network's are."""
    mixing = np.random.default_rng(99).normal(size=(4, d)) / 2
    rng = np.random.default_rng(seed)
    latent = (rng.normal(size=(n, 4)) + shift) @ mixing + 0.3 * rng.normal(size=(n, d))
    return np.maximum(latent, 0).astype(np.float32)


def measured(name: str, real: np.ndarray, fake: np.ndarray, more: np.ndarray | None = None):
    more = real[:0] if more is None else more
    sides = SimpleNamespace(real_features=real, fake_features=fake, more_features=more)
    return METRICS[name].compute(sides)


# -- both -----------------------------------------------------------------------------------------


def test_names_come_from_the_folder():
    assert {"kid", "frechet"} <= set(METRICS)
    with pytest.raises(UsageError, match="Did you mean 'frechet'"):
        lookup(METRICS, "freche", "--metrics")


@pytest.mark.parametrize("name", OF_FEATURES)
def test_contract(name):
    module = METRICS[name]
    assert module.NEEDS == ("features",)
    result = measured(name, drawn(0, 10), drawn(1, 12))
    assert result
    assert all(type(v) is float and np.isfinite(v) for v in result.values())
    assert not any("fid" in key for key in result)


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("sizes", [(1, 5), (5, 1), (0, 5)])
def test_too_few(name, sizes):
    with pytest.raises(UsageError, match=f"{sizes[0]} real and {sizes[1]} fake"):
        measured(name, drawn(0, sizes[0]), drawn(1, sizes[1]))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_inputs_are_left_alone(name):
    real, fake = drawn(0, 30), drawn(1, 30)
    before = real.copy(), fake.copy()
    real.flags.writeable = fake.flags.writeable = False
    measured(name, real, fake)
    np.testing.assert_array_equal((real, fake), before)


def blobs(seed: int, n: int = 48, side: int = 28) -> np.ndarray:
    """Grey images of one soft disc each, anywhere and of any size: (n, 1, side, side)."""
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(8, 20, (2, n, 1, 1)), rng.uniform(3, 8, (n, 1, 1))
    rows, columns = np.indices((side, side))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return (255 / (1 + np.exp(distance - radius))).astype(np.uint8)[:, None]


def test_rising_noise_on_images_is_ordered():
    network = FEATURES["efficientnet-lite0"].load("cpu")
    noise = np.random.default_rng(5).normal(size=(48, 1, 28, 28))
    real, clean, found = finish(extract(network, blobs(0))), blobs(1), []
    for strength in (0, 1, 3, 9):
        noisy = np.clip(np.rint(clean + strength * noise), 0, 255).astype(np.uint8)
        fake = finish(extract(network, noisy))
        found.append(measured("kid", real, fake) | measured("frechet", real, fake))
    for key in ("kid", "frechet_distance"):
        values = [f[key] for f in found]
        assert all(b > 1.2 * a for a, b in itertools.pairwise(values)), (key, values)
    assert abs(found[0]["kid"]) < 3 * found[0]["kid_standard_error"]
    assert all(f["kid"] > 3 * f["kid_standard_error"] for f in found[1:])


# -- kernel distance ------------------------------------------------------------------------------


def test_kid_is_that_of_torch_fidelity():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    for seed, shift in ((0, 0.0), (1, 0.3)):
        real, fake = drawn(seed, 60).astype(np.float64), drawn(seed + 50, 60, shift=shift)
        fake = fake.astype(np.float64)
        expected = kid_features_to_metric(
            torch.from_numpy(real), torch.from_numpy(fake),
            kid_subsets=1, kid_subset_size=60, verbose=False,
        )[KEY_METRIC_KID_MEAN]  # fmt: skip
        assert measured("kid", real, fake)["kid"] == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (13, 7), (20, 41)])
def test_kid_is_the_definition(n, m, monkeypatch):
    monkeypatch.setattr(kid, "BLOCK", 6)
    x, y = drawn(0, n).astype(np.float64), drawn(1, m, shift=0.5).astype(np.float64)

    def k(a, b):
        return (float(a @ b) / 24 + 1) ** 3

    def alike(a):
        pairs = [k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j]
        return np.mean(pairs)

    expected = alike(x) + alike(y) - 2 * np.mean([k(u, v) for u in x for v in y])
    assert measured("kid", x, y)["kid"] == pytest.approx(expected, rel=1e-10)


def test_kid_does_not_depend_on_the_block(monkeypatch):
    real, fake = drawn(0, 50), drawn(1, 37)
    whole = measured("kid", real, fake)
    monkeypatch.setattr(kid, "BLOCK", 8)
    assert measured("kid", real, fake) == pytest.approx(whole, rel=1e-9)


def test_error_terms_are_the_definition():
    """The jackknife by leaving out, the centred kernels by centring."""
    n, m = 9, 12
    x, y = drawn(0, n).astype(np.float64), drawn(1, m, shift=0.5).astype(np.float64)
    xx, yy, xy = kid.within(x), kid.within(y), kid.between(x, y)

    def value(a, b):
        return kid.mmd(kid.within(a), kid.within(b), kid.between(a, b))

    left_x = np.array([value(np.delete(x, i, 0), y) for i in range(n)])
    left_y = np.array([value(x, np.delete(y, j, 0)) for j in range(m)])
    jackknife = (n - 1) * left_x.var() + (m - 1) * left_y.var()

    table = kid.kernel(x, y)
    residual = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    pairs_xy = np.square(residual).sum() / ((n - 1) * (m - 1))
    pairs_x, pairs_y = _centred(kid.kernel(x, x)), _centred(kid.kernel(y, y))
    counted = 4 * (pairs_x / (n * (n - 2)) + pairs_y / (m * (m - 2)) + 2 * pairs_xy / (n * m))
    second = 2 * pairs_x / (n * (n - 1)) + 2 * pairs_y / (m * (m - 1)) + 4 * pairs_xy / (n * m)
    assert jackknife > counted
    expected = jackknife - counted + second
    assert kid.variance(xx, yy, xy) == pytest.approx(expected, rel=1e-9)


def _centred(k: np.ndarray) -> float:
    """Mean square of the U-centred kernel, entry by entry."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    rows, total, result = k.sum(1), k.sum(), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                left = rows[i] + rows[j]
                result += (k[i, j] - left / (n - 2) + total / ((n - 1) * (n - 2))) ** 2
    return result / (n * (n - 3))


def test_error_is_left_out_where_it_cannot_be_estimated():
    few = measured("kid", drawn(0, 3), drawn(1, 9))
    assert "kid" in few
    assert "kid_standard_error" not in few
    assert "kid_standard_error" in measured("kid", drawn(0, 4), drawn(1, 9))


@pytest.mark.parametrize(
    ("shift", "n", "m", "low", "high"),
    [(0.0, 40, 40, 1.0, 1.6), (0.0, 30, 60, 1.0, 1.6), (0.05, 40, 40, 1.0, 1.6),
     (1.0, 40, 40, 0.85, 1.15), (1.0, 60, 25, 0.85, 1.15)],
)  # fmt: skip
def test_error_covers_repeated_draws(shift, n, m, low, high):
    """Within sampling error far from equality; near it never too small, and not silly."""
    found = [measured("kid", drawn(2 * i, n), drawn(2 * i + 1, m, shift=shift)) for i in range(400)]
    values = np.array([f["kid"] for f in found])
    errors = np.array([f["kid_standard_error"] for f in found])
    assert (errors > 0).all()
    ratio = np.sqrt(np.square(errors).mean()) / values.std(ddof=1)
    assert low < ratio < high
    assert (np.abs(values - values.mean()) < 2 * errors).mean() > 0.85
    if shift == 0:
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
        assert (np.abs(values) < 3 * errors).mean() > 0.97


# -- Fréchet distance -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(200, 300), (200, 10), (10, 200)])
def test_frechet_is_that_of_torch_fidelity(n, m):
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    real, fake = drawn(0, n).astype(np.float64), drawn(1, m, shift=0.4).astype(np.float64)
    statistics = [fid_features_to_statistics(torch.from_numpy(f)) for f in (real, fake)]
    expected = fid_statistics_to_metric(*statistics, False)[KEY_METRIC_FID]
    assert measured("frechet", real, fake)["frechet_distance"] == pytest.approx(
        expected, rel=RELATIVE
    )


def test_frechet_of_few_samples_is_exact():
    """Two samples each: rank one covariances, for which the trace has a closed form."""
    a = np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0]])
    b = np.array([[0.0, 3, 5, 0], [0, -3, 5, 0]])
    # The spreads are at right angles: no shared part. Means differ by 5.
    assert frechet.distance(a, b) == pytest.approx(25 + 2 + 18, rel=1e-12)
    # The same spread, moved: the distance is that of the means.
    assert frechet.distance(a, a + 2) == pytest.approx(16, rel=1e-12)


def test_frechet_does_not_depend_on_the_order_or_the_side():
    real, fake = drawn(0, 40).astype(np.float64), drawn(1, 15, shift=0.4).astype(np.float64)
    value = frechet.distance(real, fake)
    assert frechet.distance(fake, real) == pytest.approx(value, rel=1e-10)
    assert frechet.distance(real[::-1], fake) == pytest.approx(value, rel=1e-10)
    assert frechet.distance(real, real) == pytest.approx(0, abs=1e-9)
