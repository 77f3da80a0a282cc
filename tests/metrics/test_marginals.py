"""The numbers of samples: exact distances, errors over repeated draws, plain words."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import mostly_slow
from test_metrics import spread

from diffuse_cli.metrics import Facts, Words, channel_distributions, estimates, marginals, remarks

RNG = np.random.default_rng(4)


def exact(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein's distance by the gaps between the sorted numbers of both."""
    a, b = (np.sort(side.astype(np.float64).ravel()) for side in (a, b))
    points = np.sort(np.concatenate([a, b]))
    shares = (np.searchsorted(side, points[:-1], "right") / len(side) for side in (a, b))
    apart = next(shares) - next(shares)
    return float((np.abs(apart) * np.diff(points)).sum())


def levels(seed: int, n: int, shape=(2, 6, 5), low: int = 0, high: int = 256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(low, high, (n, *shape)).astype(dtype)


def pictures(seed: int, n: int, shift: float = 0.0, spread: float = 30.0) -> np.ndarray:
    """Samples of one brightness each, and noise: numbers in one are far from independent."""
    rng = np.random.default_rng(seed)
    bright = rng.normal(120 + shift, spread, (n, 1, 1, 1))
    return (bright + rng.normal(0, 20, (n, 2, 5, 4))).clip(0, 255).astype(np.uint8)


def found(real: np.ndarray, fake: np.ndarray, more: np.ndarray | None = None):
    more = real[:0] if more is None else more
    measured = channel_distributions.measure_marginals(real, fake, more)
    side = SimpleNamespace(marginals=measured)
    return marginals.compute(side), marginals.details(side)


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (levels(0, 7), levels(1, 9, low=30, high=200)),
        (levels(0, 7, high=60_000, dtype=np.uint16), levels(1, 4, high=900, dtype=np.uint16)),
        (levels(0, 7, high=2, dtype=np.bool_), levels(1, 5, high=2, dtype=np.bool_)),
        (levels(0, 6, (3, 11)), levels(1, 6, (3, 11))),
        (levels(0, 6, (1, 3, 4, 2)), levels(1, 6, (1, 3, 4, 2), high=100)),
    ],
)
def test_the_distance_of_levels_is_exact(real, fake):
    values, channels = found(real, fake)
    expected = [exact(real[:, c], fake[:, c]) for c in range(real.shape[1])]
    assert [c["wasserstein"] for c in channels] == pytest.approx(expected, rel=1e-12)
    assert values["wasserstein"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert all(type(v) is float and np.isfinite(v) for v in values.values())
    json.dumps(channels)
    for c, channel in enumerate(channels):
        for name, side in (("real", real), ("generated", fake)):
            own = side[:, c].astype(np.float64)
            assert channel[name]["mean"] == pytest.approx(own.mean(), rel=1e-12)
            assert channel[name]["deviation"] == pytest.approx(own.std(), rel=1e-12)
            for q in channel[name]["quantiles"]:
                assert q["value"] == np.quantile(own, q["share"], method="inverted_cdf")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_floats_are_as_good_as_exact_whatever_their_units_and_tails(scale, offset):
    rng = np.random.default_rng(2)
    real = (scale * (rng.standard_t(3, (90, 2, 40)) + offset)).astype(np.float32)
    fake = (scale * (1.2 * rng.standard_t(3, (80, 2, 40)) + offset + 0.3)).astype(np.float32)
    _, channels = found(real, fake)
    for c, channel in enumerate(channels):
        expected = exact(real[:, c], fake[:, c])
        assert channel["wasserstein"] == pytest.approx(expected, rel=5e-3)
        deviation = real[:, c].std(dtype=np.float64)
        for q in channel["real"]["quantiles"]:
            wanted = np.quantile(real[:, c], q["share"], method="inverted_cdf")
            assert q["value"] == pytest.approx(wanted, abs=0.02 * deviation + 1e-3 * abs(wanted))


def test_a_shift_is_the_shift_and_its_distance():
    real = levels(0, 30, low=50, high=200)
    values, channels = found(real, real - 11)
    assert [c["shift"] for c in channels] == pytest.approx([-11, -11], rel=1e-12)
    assert values["wasserstein"] == pytest.approx(11, rel=1e-12)
    assert values["mean_variety"] == pytest.approx(1, rel=1e-9)
    floats = real.astype(np.float32) * 7
    values, _ = found(floats, floats - 70)
    deviations = 7 * real.std((0, 2, 3), dtype=np.float64)
    assert values["mean_shift"] == pytest.approx(-max(70 / deviations), rel=1e-6)  # in deviations


@pytest.mark.parametrize(
    ("shift", "wide", "low", "high"),
    mostly_slow([(0, 30, 0.85, 2.2), (10, 15, 0.8, 1.7), (25, 30, 0.8, 1.25)]),
)
def test_errors_cover_repeated_draws_of_samples(shift, wide, low, high):
    """Near equality never too small; an error over numbers would be twenty times too small."""
    runs = [found(pictures(2 * i, 40), pictures(2 * i + 1, 50, shift, wide))[0] for i in range(60)]
    for key in ("wasserstein", "mean_shift", "mean_variety"):
        most = high if key == "wasserstein" else 1.4  # the largest of two shifts wanders less
        assert low < spread(runs, key)[2] < most, key


def test_quantiles_have_errors_over_samples():
    runs = [found(pictures(i, 60), pictures(0, 4))[1][0]["real"] for i in range(40)]
    for run in runs:
        for q in run["quantiles"]:
            run[q["share"]], run[f"{q['share']}_standard_error"] = q["value"], q["standard_error"]
    for key in ("mean", "deviation", *(q["share"] for q in runs[0]["quantiles"])):
        assert 0.6 < spread(runs, key)[2] < 1.6, key


def test_the_order_and_the_block_change_nothing(monkeypatch):
    real, fake, more = (pictures(seed, n, 5 * seed) for seed, n in enumerate((40, 30, 30)))
    whole, channels = found(real, fake, more)
    monkeypatch.setattr(estimates, "AT_ONCE", 90)
    mixed, again = found(real[::-1], RNG.permutation(fake), RNG.permutation(more))
    assert mixed == pytest.approx(whole, rel=1e-9)
    assert again[1]["real"]["quantiles"] == channels[1]["real"]["quantiles"]


def test_inputs_are_left_alone_and_odd_ones_measured():
    real = pictures(0, 6)
    real.flags.writeable = False
    found(real, real)
    grey, colored = pictures(0, 8)[:, :1], np.repeat(pictures(0, 8)[:, :1], 3, 1)
    assert found(grey, colored)[0]["wasserstein"] == 0
    flat = np.zeros((4, 1, 3, 3), np.float32)
    values, _ = found(flat, flat + 2)
    assert values["wasserstein"] == pytest.approx(2, rel=1e-3)
    assert "mean_variety" not in values


def normalized(seed: int, n: int, dtype: type, offset: float = 0.0) -> np.ndarray:
    """Fields of one mean each, but for rounding to a type."""
    fields = np.random.default_rng(seed).normal(0, 20, (n, 2, 12, 12))
    fields = fields - fields.mean((2, 3), keepdims=True) + offset
    return (np.rint(fields) if np.issubdtype(dtype, np.integer) else fields).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(np.float64, 0.0), (np.float32, 0.0), (np.float32, 3000.0), (np.float16, 0.0),
     (np.uint8, 128.0), (np.uint16, 30_000.0)],
)  # fmt: skip
def test_the_variety_of_means_that_are_equal_is_not_measured(dtype, offset):
    real = normalized(0, 40, dtype, offset)
    fake = normalized(1, 40, dtype, offset) + np.arange(40).astype(dtype)[:, None, None, None]
    values, _ = found(real, fake)
    assert not {"mean_variety", "mean_variety_standard_error"} & {*values}
    words = "not measured, because all real images have the same mean"
    assert said(real, fake)["variety of means"] == ("caution", words)
    values, _ = found(fake, real)
    assert 0 <= values["mean_variety"] < 1e-2
    level, words = said(fake, real)["variety of means"]
    assert (level, "differ too little from each other" in words) == ("poor", True)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32])
def test_means_that_vary_little_are_measured(dtype):
    """White noise, and samples of few points that are not 0."""
    rng = np.random.default_rng(0)
    for share in (0.5, 0.002):
        real, fake = ((rng.random((60, 1, 32, 32)) < share).astype(dtype) for _ in range(2))
        values, _ = found(real, fake)
        assert abs(values["mean_variety"] - 1) < 4 * values["mean_variety_standard_error"] < 1


def test_the_contrast_of_a_channel_that_never_varies_is_not_measured():
    real, fake = pictures(0, 20).astype(np.float32), pictures(1, 20).astype(np.float32)
    real[:, 0] = 0.1
    values, channels = found(real, fake)
    assert channels[0]["contrast"] is channels[0]["contrast_standard_error"] is None
    assert channels[1]["contrast"] == pytest.approx(1, abs=0.3)
    json.dumps(channels, allow_nan=False)
    assert "contrast" not in said(real, fake)
    real[0, 0, 0, 0] = np.nextafter(np.float32(0.1), np.float32(1))  # rounding
    assert found(real, fake)[0]["wasserstein"] == pytest.approx(values["wasserstein"], rel=1e-3)
    assert found(real, fake)[1][0]["contrast"] is None


def test_errors_of_means_are_those_of_independent_samples():
    """Of few samples: the deviation over n - 1, not n."""
    real, fake = pictures(0, 5)[:, :1], pictures(1, 3)[:, :1]
    values, channels = found(real, fake)
    apart = [side.mean((1, 2, 3)) for side in (real, fake)]
    errors = [own.std(ddof=1) / len(own) ** 0.5 for own in apart]
    assert values["mean_shift_standard_error"] == pytest.approx(np.hypot(*errors), rel=1e-12)
    ratio = apart[1].std(ddof=1) / apart[0].std(ddof=1)
    assert values["mean_variety"] == pytest.approx(ratio, rel=1e-12)
    for name, own, error in zip(("real", "generated"), apart, errors, strict=True):
        assert channels[0][name]["mean_standard_error"] == pytest.approx(error, rel=1e-12)
        assert channels[0][name]["deviation_of_means"] == pytest.approx(own.std(ddof=1), rel=1e-12)


def test_errors_of_quantiles_are_those_of_the_shares_of_samples():
    """Half of four samples are at the median or below: their share is off by 1 / sqrt(12)."""
    real = np.repeat(np.array([10, 20, 30, 40], np.uint8), 6).reshape(4, 1, 2, 3)
    [median] = [q for q in found(real, real)[1][0]["real"]["quantiles"] if q["share"] == 0.5]
    assert (median["value"], median["standard_error"]) == (20, 15)


def test_the_floor_is_real_samples_against_others():
    real, fake, more = pictures(0, 40), pictures(1, 40), pictures(2, 30)
    values, _ = found(real, fake, more)
    bare, _ = found(real, more)
    assert values["wasserstein_floor"] == pytest.approx(bare["wasserstein"], rel=1e-9)
    halved, _ = found(real, fake)
    bare, _ = found(real[:20], real[20:])
    assert halved["wasserstein_floor"] == pytest.approx(bare["wasserstein"], rel=1e-9)
    assert "wasserstein_floor" not in found(real[:3], fake)[0]


# -- words ----------------------------------------------------------------------------------------

IMAGE = Words("images", "pixels", "dark", "bright", ("red", "green"))


def said(real, fake, words=IMAGE, of=256):
    values, channels = found(real, fake)
    facts = Facts(values, len(real), len(fake), 0, True, of, {"marginals": channels}, words)
    return {r.kind: (r.level, r.says) for r in remarks(facts)}


def test_a_shift_is_called_what_it_is():
    real = pictures(0, 400)
    darker = (real.astype(int) - np.array([11, 0])[:, None, None]).clip(0, 255).astype(np.uint8)
    for sides, way in (((real, darker), "dark"), ((darker, real), "bright")):
        words = f"generated images are too {way} by 11.0 ± 2.1 levels in red"
        assert said(*sides)["mean"] == ("poor", words)
    assert said(real, pictures(1, 400))["mean"][0] == "fine"
    floats = said(real.astype(np.float32), darker.astype(np.float32), Words("arrays"), None)
    assert floats["mean"][1] == "generated arrays are too low by 11.0 ± 2.1 in channel 0"


def test_wrong_contrast_and_variety_are_named():
    real = pictures(0, 400)
    flat = (120 + (real.astype(int) - 120) // 2).astype(np.uint8)
    found = said(real, flat)
    assert found["contrast"][0] == "poor"
    assert found["contrast"][1].startswith("too low in ")
    level, words = found["variety of means"]
    assert (level, "too little from each other: 0.5" in words) == ("poor", True)
    level, words = said(flat, real)["variety of means"]
    assert (level, "too much from each other: 2.0" in words) == ("poor", True)
    assert not {"contrast", "variety of means"} & {*said(real, pictures(1, 400))}


def test_one_of_many_channels_is_not_off_by_chance():
    """The largest of 64 shifts is beyond three errors in one of six sets of channels."""
    rng, wrong = np.random.default_rng(0), 0
    side = {"deviation": 1.0, "deviation_standard_error": 0.1}
    for _ in range(200):
        channels = [
            {"real": side, "generated": side, "shift": shift, "shift_standard_error": 1.0,
             "contrast": 1.0, "contrast_standard_error": 0.1}
            for shift in rng.normal(size=64)
        ]  # fmt: skip
        facts = Facts({}, 9, 9, 0, True, None, {"marginals": channels})
        wrong += [r.level for r in remarks(facts) if r.kind == "mean"] != ["fine"]
    assert wrong <= 3
