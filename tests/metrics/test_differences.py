"""Differences of two models over repeated draws: how often a winner is named, of every metric.

Each pair of models is measured on the same real samples, and its k-th samples begin with the same
noise. Three kinds of pairs: two equal models that are as good as real samples, two equally bad ones
on opposite sides of them, and a good one with a bad one.
"""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import mostly_slow

from diffuse_cli.evaluation.paired_comparison import differences
from diffuse_cli.metrics import (
    METRICS,
    SIGNIFICANT,
    Metric,
    channel_distributions,
    memorization,
    numbers,
    spectrum,
)
from diffuse_cli.metrics.ensembles import EnsembleScores
from diffuse_cli.metrics.nearest_neighbors import NearestDistances

PAIRS = 200
"""Pairs of each kind without a winner."""

MOST = 4
"""Winners among them that chance explains: at 0.27 % each, more come in 1 of 5,000 such tests."""

N, COLUMNS = 48, 6
"""Samples on each side, and their features."""

FIELDS = 24
"""Samples with an ensemble."""

CAREFUL = {"wasserstein": 4, "spectral_distance": 4, "frechet_infinity": 3}
"""How many times the spread the errors of some differences may be where both models are equal."""

PAIRED = [k for k, own in METRICS.items() if own.difference_errors is not Metric.difference_errors]

SLOW = "ensembles".__eq__
"""Metric whose repeated draws take ten seconds."""

WINNERS = {n.key for n in numbers() if n.direction in ("lower", "higher")}

KINDS = {
    "equal": (0.0, 0.0), "opposite": (1.0, -1.0), "apart": (0.0, 3.0), "different": (0.0, 16.0),
}  # fmt: skip
"""How bad the two models are, about in errors of a mean, and on which side."""


class Draw:
    """Noise of the samples of one side, and of the numbers of each of them."""

    def __init__(self, rng):
        self.features = rng.normal(size=(N, COLUMNS))
        self.bright, self.strong = rng.normal(size=(2, N, 1, 1, 1))
        self.pixels = rng.normal(size=(N, 1, 8, 8))
        self.distances = rng.normal(size=N)
        self.of_images, self.of_training = rng.normal(size=(2, N, 3))

    def like(self, other: Draw, share: float = 0.95) -> Draw:
        """Noise that has much in common with another's."""
        for name, own in vars(self).items():
            setattr(self, name, share * vars(other)[name] + (1 - share**2) ** 0.5 * own)
        return self


class Side:
    """All parts of an evaluation, each made when a metric reads it."""

    floats = True

    def __init__(self, real, fake, common, bad):
        self.real, self.fake, self.common, self.bad = real, fake, common, bad
        self.baseline_features = {}

        self.real_features, self.fake_features = (
            ((of.features + 0.1 * off) / (1 + np.arange(COLUMNS)) ** 0.5).astype(np.float32)
            for of, off in ((real, 0), (fake, bad))
        )
        self.more_features = self.real_features[:0]

    @cached_property
    def sides(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        real, fake = self._samples(self.real, 0), self._samples(self.fake, self.bad)
        return real, fake, real[:0]

    def _samples(self, of: Draw, bad: float) -> np.ndarray:
        """Images of a brightness and a contrast each."""
        waves = 10 * np.exp(0.4 * of.strong + 0.08 * bad) * of.pixels
        return np.rint(120 + 10 * of.bright + 2 * bad + waves).clip(0, 255).astype(np.uint8)

    @cached_property
    def marginals(self) -> channel_distributions.Marginals:
        return channel_distributions.measure_marginals(*self.sides)

    @cached_property
    def spectra(self) -> spectrum.Spectra:
        return spectrum.measure_spectra(*self.sides)

    @cached_property
    def bits(self) -> np.ndarray:
        """What images cost by themselves, and what is the model's own; opposite sides are equal."""
        return 3 + self.common.of_images + 0.1 * self.fake.of_images + 0.03 * abs(self.bad)

    @cached_property
    def train_bits(self) -> np.ndarray:
        return 3 + self.common.of_training + 0.1 * self.fake.of_training

    @cached_property
    def nearest(self) -> dict[str, NearestDistances]:
        samples = np.exp(self.fake.distances - 0.2 * self.bad)
        references = np.exp(self.real.distances)
        found = NearestDistances(samples, references, np.zeros(N, int))
        return dict.fromkeys(memorization.SPACES, found)

    @cached_property
    def ensembles(self) -> EnsembleScores:
        """Three members of each of a few fields, which are wrong by what a side lacks."""
        shared, truths = self.common.pixels[:FIELDS], self.real.pixels[:FIELDS] + 0.0
        truths += shared
        scores = EnsembleScores.from_real(3, truths)
        for k, truth in enumerate(truths):
            wrong = self.fake.pixels[k]
            members = [np.roll(wrong, move, -1) + self.fake.bright[k] / 4 for move in range(3)]
            scores.add(np.stack(members) + shared[k] + self.bad / 20, truth, truths[:0], None)
        return scores

    @cached_property
    def paired_values(self) -> SimpleNamespace:
        values = self.bits[:, 0]
        worse = {"feature_distance": values, "inconsistency": values, "diversity": values}
        return SimpleNamespace(values={"psnr": 30 - values, "ssim": -values, **worse})


def pair(kind: str, seed: int) -> tuple[Side, Side]:
    """Two models of a kind."""
    rng = np.random.default_rng([seed, *map(ord, kind)])
    real, common, one = Draw(rng), Draw(rng), Draw(rng)
    other = Draw(rng).like(one)
    a, b = KINDS[kind]
    return Side(real, one, common, a), Side(real, other, common, b)


def repeated(name: str, kind: str, times: int) -> dict[str, np.ndarray]:
    """By key the difference, its error, who wins, -1 for A, 1 for B, else 0, and the error if the
    models had nothing in common; (times, 4)."""
    rows = {}
    for seed in range(times):
        sides = pair(kind, seed)
        values = [METRICS[name].compute(side) for side in sides]
        errors = METRICS[name].difference_errors(*sides)
        for found in differences(values, errors):
            if found.paired:
                winner = {"A": -1, "B": 1, "": 0}[found.better]
                key = found.number.key
                alone = np.hypot(*(own.get(f"{key}_standard_error", 0.0) for own in values))
                rows.setdefault(key, []).append((*found.gap, winner, alone))
        assert errors.keys() >= WINNERS & {*values[0]}
    return {key: np.array(own) for key, own in rows.items()}


@pytest.mark.parametrize("kind", mostly_slow(["opposite", "equal", "apart"], always=1))
@pytest.mark.parametrize("name", mostly_slow(sorted(PAIRED, key=SLOW), len(PAIRED) - 1))
def test_errors_are_those_of_repeated_draws_and_neither_of_equals_wins(name, kind):
    found = repeated(name, kind, PAIRS)
    assert found
    for key, rows in found.items():
        assert kind == "apart" or np.count_nonzero(rows[:, 2]) <= MOST, key
        off = np.abs(rows[:, 0] - rows[:, 0].mean())
        assert (off > SIGNIFICANT * rows[:, 1]).sum() <= MOST, key
        error, alone = np.sqrt(np.square(rows[:, [1, 3]]).mean(0))
        assert 0.85 < error / rows[:, 0].std(ddof=1) < CAREFUL.get(key, 1.7), key
        assert key in CAREFUL or not alone or alone > 1.15 * error, key


@pytest.mark.parametrize("name", PAIRED)
def test_the_better_model_wins(name):
    for key, rows in repeated(name, "different", PAIRS // 10).items():
        if key in WINNERS:
            assert (rows[:, 2] == -1).mean() > 0.6, key
            assert not (rows[:, 2] == 1).any()


@pytest.mark.parametrize("name", PAIRED)
def test_the_error_is_the_same_whichever_model_comes_first_and_0_of_one(name):
    for seed in range(3):
        a, b = pair("different", seed)
        found, swapped = (METRICS[name].difference_errors(*both) for both in ((a, b), (b, a)))
        assert found == pytest.approx(swapped, rel=1e-6)
        same = METRICS[name].difference_errors(a, a)
        assert max(same.values()) < (0.05 if name in ("precision-recall", "memorization") else 1e-9)


def test_few_images_are_not_compared_nor_copies_with_other_references():
    a, b = pair("equal", 0)[0], pair("equal", 1)[0]
    assert METRICS["memorization"].difference_errors(a, b) == {}
    near = {"pixels": NearestDistances(*np.ones((2, 1)), np.zeros(2, int))}
    own = np.arange(12, dtype=np.float32).reshape(3, 4)
    few = SimpleNamespace(nearest=near, real_features=own, fake_features=own, more_features=own[:0])
    for name in ("memorization", "kid"):
        assert METRICS[name].difference_errors(few, few) == {}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_the_error_of_a_difference_has_no_unit_of_floats(scale):
    a, b = pair("different", 0)
    real, one, other = (side.astype(np.float32) for side in (*a.sides[:2], b.sides[1]))
    measure = channel_distributions.difference_error
    whole = measure(real, one, other)
    assert measure(scale * real, scale * one, scale * other) == pytest.approx(whole, rel=1e-3)
    levels = METRICS["marginals"].difference_errors(a, b)["wasserstein"]
    assert whole * real.std() == pytest.approx(levels, rel=0.01)
