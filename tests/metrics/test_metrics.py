"""Metrics against torch-fidelity, against brute force, and against repeated draws."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import mostly_slow

from diffuse_cli.metrics import (
    METRICS,
    Facts,
    Words,
    frechet,
    kid,
    memorization,
    nearest_neighbors,
    precision_recall,
)
from diffuse_cli.metrics.nearest_neighbors import NearestDistances, find_nearest
from diffuse_cli.system.events import finish

RELATIVE = 1e-5

OF_FEATURES = ["kid", "frechet", "precision-recall"]


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


def spread(runs, key):
    """Numbers of repeated draws, their errors, and how these compare with how those scatter."""
    values, errors = (np.array([r[k] for r in runs]) for k in (key, f"{key}_standard_error"))
    return values, errors, np.sqrt(np.square(errors).mean()) / values.std(ddof=1)


# -- all of features ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_FEATURES)
def test_contract(name):
    real, fake = drawn(0, 30), drawn(1, 30)
    before = real.copy(), fake.copy()
    real.flags.writeable = fake.flags.writeable = False
    result = measured(name, real, fake)
    np.testing.assert_array_equal((real, fake), before)
    assert METRICS[name].NEEDS == ("features",)
    assert result
    assert all(type(v) is float and np.isfinite(v) for v in result.values())
    assert not any("fid" in key for key in result)


@pytest.mark.parametrize(
    ("name", "n", "m", "there", "missing"),
    [
        ("kid", 3, 9, {"kid"}, {"kid_standard_error"}),
        ("kid", 4, 9, {"kid_standard_error"}, set()),
        ("frechet", 15, 99, {"frechet_distance"}, {"frechet_infinity"}),
        ("frechet", 16, 16, {"frechet_infinity"}, set()),
        ("precision-recall", 4, 3, {"precision"}, {"recall", "density", "coverage"}),
        ("precision-recall", 6, 4, {"precision", "recall", "density", "coverage"}, set()),
    ],
)
def test_numbers_of_too_few_images_are_left_out(name, n, m, there, missing):
    found = {*measured(name, drawn(0, n), drawn(1, m))}
    assert there <= found
    assert not missing & found


# -- kernel distance ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(2, 3), (13, 7), (20, 41)])
def test_kid_is_the_definition(n, m, monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "BLOCK", 6)
    x, y = drawn(0, n).astype(np.float64), drawn(1, m, shift=0.5).astype(np.float64)

    def k(a, b):
        return (float(a @ b) / 24 + 1) ** 3

    def alike(a):
        pairs = [k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j]
        return np.mean(pairs)

    expected = alike(x) + alike(y) - 2 * np.mean([k(u, v) for u in x for v in y])
    assert measured("kid", x, y)["kid"] == pytest.approx(expected, rel=1e-10)


def test_error_terms_are_the_definition():
    """The jackknife by leaving out, the centered kernels by centering."""
    n, m = 9, 12
    x, y = drawn(0, n).astype(np.float64), drawn(1, m, shift=0.5).astype(np.float64)
    xx, yy, xy = kid.sum_within(x), kid.sum_within(y), kid.sum_between(x, y)

    def value(a, b):
        return kid.mmd(kid.sum_within(a), kid.sum_within(b), kid.sum_between(a, b))

    left_x = np.array([value(np.delete(x, i, 0), y) for i in range(n)])
    left_y = np.array([value(x, np.delete(y, j, 0)) for j in range(m)])
    jackknife = (n - 1) * left_x.var() + (m - 1) * left_y.var()

    table = kid.kernel(x, y)
    residual = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    pairs_xy = np.square(residual).sum() / ((n - 1) * (m - 1))
    pairs_x, pairs_y = _centered(kid.kernel(x, x)), _centered(kid.kernel(y, y))
    counted = 4 * (pairs_x / (n * (n - 2)) + pairs_y / (m * (m - 2)) + 2 * pairs_xy / (n * m))
    second = 2 * pairs_x / (n * (n - 1)) + 2 * pairs_y / (m * (m - 1)) + 4 * pairs_xy / (n * m)
    assert jackknife > counted
    expected = jackknife - counted + second
    assert kid.variance(xx, yy, xy) == pytest.approx(expected, rel=1e-9)


def _centered(k: np.ndarray) -> float:
    """Mean square of the U-centered kernel."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    centered = k - (k.sum(1)[:, None] + k.sum(0)) / (n - 2) + k.sum() / ((n - 1) * (n - 2))
    return float(np.square(centered - np.diag(np.diag(centered))).sum() / (n * (n - 3)))


@pytest.mark.parametrize(
    ("shift", "n", "m", "low", "high"),
    mostly_slow(
        [(0.0, 30, 60, 1.0, 1.6), (1.0, 60, 25, 0.85, 1.15), (0.0, 40, 40, 1.0, 1.6),
         (0.05, 40, 40, 1.0, 1.6), (1.0, 40, 40, 0.85, 1.15)]
    ),
)  # fmt: skip
def test_error_covers_repeated_draws(shift, n, m, low, high):
    """Within sampling error far from equality; near it never too small, and not silly."""
    runs = [measured("kid", drawn(2 * i, n), drawn(2 * i + 1, m, shift=shift)) for i in range(400)]
    values, errors, ratio = spread(runs, "kid")
    assert (errors > 0).all()
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
    found = measured("frechet", real, fake)["frechet_distance"]
    assert found == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("n", [40, 15])
def test_influence_is_the_derivative(n):
    """Each image given a little more weight, above and below the number of features."""
    a, b = drawn(0, n).astype(np.float64), drawn(1, 30, shift=0.4).astype(np.float64)
    found = frechet.estimate_frechet(a, b)
    variance = found.a.var(ddof=1) / n + found.b.var(ddof=1) / 30
    assert found.error() == pytest.approx(variance**0.5, rel=1e-9)

    def weighted(i, step):
        """The distance where image i counts 1 + step times, by covariances over the weights."""
        weights = np.full(n, 1.0)
        weights[i] += step * n
        weights /= weights.sum()
        centered = a - weights @ a
        moved = centered * np.sqrt(weights * n)[:, None]
        basis = np.linalg.svd(moved, full_matrices=False)
        root = torch.from_numpy(basis[1][:, None] * basis[2] / np.sqrt(n - 1))
        other = torch.from_numpy(b - b.mean(0)) / np.sqrt(len(b) - 1)
        shared = torch.linalg.svdvals(root @ other.T).sum()
        gap = np.square(weights @ a - b.mean(0)).sum()
        return float(gap + root.square().sum() + other.square().sum() - 2 * shared)

    step = 1e-6
    for i in range(0, n, 7):
        slope = (weighted(i, step) - weighted(i, -step)) / (2 * step)
        assert found.a[i] == pytest.approx(slope, rel=1e-3, abs=1e-3)


def normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Independent features whose deviations fall as a network's do."""
    rng, deviation = np.random.default_rng(seed), (1 + np.arange(d)) ** -0.5
    return ((rng.normal(size=(n, d)) * scale + shift) * deviation).astype(np.float32)


@pytest.mark.parametrize(
    ("d", "n", "shift", "scale"),
    mostly_slow([(24, 200, 0.5, 1.2), (64, 50, 1, 1), (24, 200, 0, 1), (64, 300, 0.2, 1.1)]),
)
def test_frechet_errors_cover_repeated_draws(d, n, shift, scale):
    """Also of the line, whose points come from the same images."""
    sides = ((normal(2 * i, n, d), normal(2 * i + 1, n, d, shift, scale)) for i in range(40))
    runs = [measured("frechet", *both) for both in sides]
    distance, _, ratio = spread(runs, "frechet_distance")
    line, errors, line_ratio = spread(runs, "frechet_infinity")
    assert 0.85 < min(ratio, line_ratio) <= max(ratio, line_ratio) < 1.7
    truth = float(((shift**2 + (scale - 1) ** 2) / (1 + np.arange(d))).sum())
    if n > d:  # below the number of features the line says only that it is no line
        assert (np.abs(line - truth) < 2 * errors).mean() > 0.85
        assert (distance > truth).all() or shift
        assert abs(line.mean() - truth) < abs(distance.mean() - truth) / 5


def test_the_line_is_worth_nothing_below_the_number_of_features_and_says_so():
    words = Words("images", "pixels")
    found, more = (measured("frechet", normal(0, n, 200), normal(1, n, 200)) for n in (50, 2000))
    assert abs(found["frechet_infinity_bend"]) > found["frechet_infinity"] / 4
    assert abs(more["frechet_infinity_bend"]) < abs(found["frechet_infinity_bend"]) / 20
    for values, n in ((found, 50), (more, 2000)):
        facts = Facts(values, n, n, 200, True, 256, words=words)
        said = [r for r in METRICS["frechet"].remarks(facts) if "infinite" in r.kind]
        assert len(said) == (n == 50)
        assert all(r.warns and "a line gives" in r.says for r in said)


@pytest.mark.parametrize(("name", "key"), [("frechet", "frechet_distance"), ("kid", "kid")])
def test_the_floor_is_real_images_against_others(name, key):
    real, fake, more = drawn(0, 60), drawn(1, 60, shift=2), drawn(2, 50)
    none, few = real[:0], fake[:10]
    for generated, further, one, other in (
        (fake, more, real, more),
        (few, more, real, more[:10]),
        (few, none, real[:50], real[50:]),
        (fake, none, real[:30], real[30:]),
    ):
        found = measured(name, real, generated, further)
        assert found[f"{name}_floor"] == pytest.approx(measured(name, one, other)[key])
        if name == "frechet":
            assert (found["floor_images"], found["floor_further"]) == (len(one), len(other))
    assert f"{name}_floor" not in measured(name, real[:3], fake)


# -- precision, recall, density, coverage ---------------------------------------------------------


def by_hand(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """The formulas of the papers, pair by pair."""

    def distance(a, b):
        return float(np.sqrt(np.square(a.astype(np.float64) - b).sum()))

    def radius(of, i, k):
        return sorted(distance(of[i], of[j]) for j in range(len(of)) if j != i)[k - 1]

    def inside(of, points, k):
        radii = [radius(of, i, k) for i in range(len(of))]
        return np.array([[distance(x, p) <= r for p in points] for x, r in zip(of, radii)])  # noqa: B905

    wide = inside(real, fake, 5)
    return {
        "precision": inside(real, fake, 3).any(0).mean(),
        "recall": inside(fake, real, 3).any(0).mean(),
        "density": wide.sum() / (5 * len(fake)),
        "coverage": wide.any(1).mean(),
    }


@pytest.mark.parametrize(("n", "m"), [(30, 30), (23, 41), (40, 9)])
@pytest.mark.parametrize("block", [7, 1000])
def test_the_four_are_the_definition_whatever_the_block(n, m, block, monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "BLOCK", block)
    real, fake = drawn(3, n), drawn(4, m, shift=1.5)
    found = measured("precision-recall", real, fake)
    expected = by_hand(real, fake)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=RELATIVE)
    assert 0 < found["coverage"] < 1


@pytest.mark.parametrize(("n", "m"), [(200, 30), (30, 200), (60, 60)])
def test_the_coverage_of_equal_distributions_is_known(n, m):
    runs = [measured("precision-recall", drawn(2 * k, n), drawn(2 * k + 1, m)) for k in range(40)]
    found = np.array([run["coverage"] for run in runs])
    error = found.std(ddof=1) / len(found) ** 0.5
    assert runs[0]["coverage_expected"] == pytest.approx(found.mean(), abs=3 * error + 1e-3)


def test_a_metric_is_known_by_its_old_name_too():
    renamed = {"answers": "paired", "landmarks": "baselines", "manifold": "precision-recall"}
    for old, name in renamed.items():
        assert METRICS[old] == METRICS[name]
        assert METRICS.current(old) == name in METRICS
        assert old not in list(METRICS)


@pytest.mark.parametrize(
    "draw",
    mostly_slow(
        [
            lambda i: (drawn(2 * i, 200), drawn(2 * i + 1, 80, shift=1)),
            lambda i: (normal(2 * i, 80, 400), normal(2 * i + 1, 80, 400, 0.1, 0.95)),
            lambda i: (drawn(2 * i, 100), drawn(2 * i + 1, 100)),
            lambda i: (normal(2 * i, 100, 64), normal(2 * i + 1, 100, 64, 0.3, 0.8)),
            lambda i: (normal(2 * i, 100, 64), normal(2 * i + 1, 60, 64, 0, 1.2)),
        ]
    ),
)
def test_errors_of_the_four_cover_repeated_draws(draw):
    """In few dimensions and in many, where some images are neighbors of very many others."""
    runs = [measured("precision-recall", *draw(i)) for i in range(150)]
    ratios = {key: spread(runs, key)[2] for key in ("precision", "recall", "density", "coverage")}
    assert all(0.85 < ratio < 1.5 for ratio in ratios.values()), ratios
    assert 1 < ratios["density"] < 1.3


@pytest.mark.parametrize(("real", "fake"), [(40, 30), (7, 60), (60, 9)])
def test_the_recall_alone_is_that_among_all(real, fake):
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(real, 5)), draw.normal(size=(fake, 5))
    alone = precision_recall.measure_recall(a, b)
    among = precision_recall.measure_fractions(a, b)["recall"]
    assert (alone.value(), alone.error()) == (among.value(), among.error())
    assert 0 < alone.value() < 1
    assert precision_recall.measure_recall(a, b[:3]) is None


# -- memorization and overfitting -----------------------------------------------------------------


def nearest(samples: np.ndarray, references: np.ndarray) -> dict[str, float]:
    found = NearestDistances(samples, references, np.zeros(9, int))
    return METRICS["memorization"].compute(SimpleNamespace(nearest={"pixels": found}))


@pytest.mark.parametrize(("n", "m"), mostly_slow([(200, 200), (100, 5), (50, 400)]))
def test_honest_samples_are_near_as_often_as_expected(n, m):
    """Whatever the distribution; and the errors cover what repeated draws scatter."""
    rng = np.random.default_rng(0)
    found = [nearest(rng.gamma(3, size=n), rng.gamma(3, size=m)) for _ in range(400)]
    shares = np.array([f["memorized_pixels"] for f in found])
    expected = found[0]["memorized_expected"]
    assert expected == pytest.approx(max(1, int(0.05 * (m + 1))) / (m + 1))
    assert abs(shares.mean() - expected) < 4 * shares.std() / 20
    scores = np.array([f["memorized_z_pixels"] for f in found])
    assert abs(scores.mean()) < 0.2
    assert 0.85 < scores.std() < 1.15
    for key in ("memorized_pixels", "memorized_rank_pixels"):
        assert 0.8 < spread(found, key)[2] < 2, key


def test_training_images_without_themselves_are_references_of_honest_samples():
    """Of 95 training images and 5 held-out ones: the statistic stays standard, a little wide."""
    rng = np.random.default_rng(0)
    scores, caught = [], []
    for _ in range(200):
        train, held_out, new = (rng.normal(size=(n, 3)) for n in (95, 5, 300))
        copies = train[rng.integers(0, 95, 300)] + 0.01 * rng.normal(size=(300, 3))
        for samples, into in ((new, scores), (copies, caught)):
            near = finish(find_nearest(samples, held_out, train, np.arange(95), 95))
            values = METRICS["memorization"].compute(SimpleNamespace(nearest={"pixels": near}))
            into.append(values["memorized_z_pixels"])
    assert abs(np.mean(scores)) < 0.3
    assert 0.8 < np.std(scores) < 1.4
    assert min(caught) > 8


def test_copies_are_counted():
    rng = np.random.default_rng(0)
    held_out = rng.gamma(5, size=300)
    copies = np.where(np.arange(300) < 90, 0.01, rng.gamma(5, size=300))
    found = nearest(copies, held_out)
    assert found["memorized_pixels"] == pytest.approx(0.3 + 0.7 * 0.05, abs=0.04)
    assert found["memorized_z_pixels"] > 5
    every = nearest(np.full(300, 0.0), held_out)
    assert (every["memorized_pixels"], every["memorized_rank_pixels"]) == (1, 1)


def test_copies_do_not_change_which_fraction_would_be_noticed():
    """None is where references equal training images: nothing is nearer than distance 0."""
    rng = np.random.default_rng(0)
    samples, references = rng.gamma(5, size=200), rng.gamma(5, size=200)
    for copies in (0, 9, 200):
        found = nearest(np.where(np.arange(200) < copies, 0.0, samples), references)
        assert found["memorized_noticed"] == 0.1
    references[7] = 0.0
    assert "memorized_noticed" not in nearest(samples, references)
    samples[:20] = 0.0
    assert nearest(samples, references)["memorized_copies"] == 0


@pytest.mark.parametrize(("n", "m"), [(20, 500), (100, 100), (1000, 60), (50, 3)])
def test_the_noticed_fraction_is_the_smallest_of_its_list(n, m):
    """By random numbers of copies, of which so many as are no chance are noticed."""
    rng, fewest = np.random.default_rng(0), memorization.fewest_copies(n, m)
    power = [(rng.binomial(n, f, 200_000) >= fewest).mean() for f in memorization.FRACTIONS]
    fraction = memorization.find_noticed_fraction(n, m)
    known = memorization.FRACTIONS.index(fraction) if fraction else len(power)
    assert all(p >= 0.948 for p in power[known:])
    assert all(p < 0.952 for p in power[:known])


@pytest.mark.parametrize(("n", "m"), [(50, 10), (30, 40)])
def test_nearest_samples_are_counted_exactly(n, m):
    """The probability of so many among the nearest, by counting random orders."""
    rng, fewest = np.random.default_rng(0), memorization.fewest_copies(n, m)
    orders = np.argsort(rng.random((20_000, n + m)), axis=1) < n
    before = np.argmin(orders, axis=1)  # samples before the first reference
    assert (before >= fewest).mean() <= 0.00135 * 1.6
    assert (before >= fewest - 1).mean() > 0.00135 * 0.6


def test_rank_is_the_share_of_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 6, 13).astype(float), rng.integers(0, 6, 8).astype(float)
    expected = np.mean([(x < y) + (x == y) / 2 for x in a for y in b])
    assert nearest(a, b)["memorized_rank_pixels"] == pytest.approx(expected)


def test_the_gap_is_held_out_less_training():
    rng = np.random.default_rng(0)
    bits, train = rng.normal(3, 1, (50, 3)), rng.normal(2, 1, (80, 3))
    found = METRICS["overfitting"].compute(SimpleNamespace(bits=bits, train_bits=train))
    assert found["bits_per_dim_train"] == pytest.approx(train.sum(1).mean())
    gap = bits.sum(1).mean() - train.sum(1).mean()
    assert found["bits_per_dim_gap"] == pytest.approx(gap)
    error = np.hypot(bits.sum(1).std(ddof=1) / 50**0.5, train.sum(1).std(ddof=1) / 80**0.5)
    assert found["bits_per_dim_gap_standard_error"] == pytest.approx(error)
    assert not METRICS["overfitting"].compute(SimpleNamespace(bits=bits[:1], train_bits=train))


def test_a_single_distance_shows_no_copies():
    for few in (([1.0, 2.0, 3.0], [1.5]), ([1.0], [0.5, 1.5]), ([1.0, 2.0], [np.inf, np.inf, 1.0])):
        assert nearest(*map(np.array, few)) == {}
