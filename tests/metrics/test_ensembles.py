"""Scores of ensembles against closed forms of Gaussian fields, and against scoringrules."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scoringrules

from diffuse_cli.metrics import METRICS, Facts, ensembles, numbers
from diffuse_cli.metrics.ensembles import (
    EnsembleScores,
    energy_score,
    fair_crps,
    judge,
    linearize,
    rank_frequencies,
)

NOISE = 0.5
"""Standard deviation of the noise of observations."""


class Posterior:
    """White Gaussian waves x of variance 1 / (1 + k^2), given y = blur(x) + noise.

    In waves the posterior is independent: with variance v of a wave, and blur b, its mean is
    y v b / (v b^2 + s^2), and its variance v s^2 / (v b^2 + s^2).
    """

    def __init__(self, side: int) -> None:
        grid = np.meshgrid(*[np.fft.fftfreq(side) * side] * 2, indexing="ij")
        radius = np.square(grid).sum(0)
        self.side, prior, blur = side, 1 / (1 + radius), np.exp(-radius / side)
        self.gain = prior * blur / (prior * blur**2 + NOISE**2)
        self.prior, self.blur = prior, blur
        self.variance = prior * NOISE**2 / (prior * blur**2 + NOISE**2)
        self.sigma = math.sqrt(self.variance.mean())  # of each point

    def draw(self, draw: np.random.Generator, variance: np.ndarray, count: int) -> np.ndarray:
        """Return Gaussian fields (N, side, side) with these variances of waves."""
        white = np.fft.fft2(draw.normal(size=(count, self.side, self.side)))
        return np.fft.ifft2(white * np.sqrt(variance)).real

    def fields(self, draw, count, members, spread=1.0, bias=0.0, shift=0):
        """Yield members and truth of each field, both with a channel."""
        truths = self.draw(draw, self.prior, count)
        noise = draw.normal(0, NOISE, truths.shape)
        observed = np.fft.ifft2(np.fft.fft2(truths) * self.blur).real + noise
        means = np.fft.ifft2(np.fft.fft2(observed) * self.gain).real
        for k, truth in enumerate(truths):
            away = self.draw(draw, self.variance, members)
            yield (means[k - shift] + spread * away + bias)[:, None], truth[None]


def score(posterior: Posterior, seed: int, count: int, members: int, **errors) -> EnsembleScores:
    draw = np.random.default_rng(seed)
    pairs = [*posterior.fields(draw, count, members, **errors)]
    truths = np.stack([truth for _, truth in pairs])
    scores = EnsembleScores.from_real(members, truths)
    for k, (made, truth) in enumerate(pairs):
        scores.add(made, truth, np.delete(truths, k, 0)[:16], None)
    return scores


def kinds(scores: EnsembleScores) -> list[str]:
    return [finding["kind"] for finding in judge(scores)]


def test_an_exact_ensemble_has_the_closed_form():
    posterior, count = Posterior(16), 300
    scores = score(posterior, 1, count, 16)
    found = ensembles.compute(SimpleNamespace(ensembles=scores))
    exact = {
        "crps": posterior.sigma / math.sqrt(math.pi),
        "crps_of_climatology": math.sqrt(posterior.prior.mean() / math.pi),
        "rmse_of_mean": posterior.sigma * math.sqrt(1 + 1 / 16),
        "mae_of_mean": posterior.sigma * math.sqrt((1 + 1 / 16) * 2 / math.pi),
        "spread_error_ratio": 1.0,
        "coverage_50": 0.5,
        "coverage_90": 0.9,
        "crps_of_mean_field": math.sqrt(posterior.variance[0, 0] / math.pi) / 16,
    }
    for key, value in exact.items():
        error = found[f"{key}_standard_error"]
        assert 0 < error < 0.1 * value, key
        assert abs(found[key] - value) < 3.5 * error, key
    assert found["rank_reliability"] < 2 * found["rank_reliability_expected"]
    ranks = ensembles.details(SimpleNamespace(ensembles=scores))["ranks"]
    steps = (np.array(ranks["frequencies"]) - 1 / 17) / ranks["frequencies_standard_error"]
    assert np.abs(steps).max() < 4
    assert sum(ranks["frequencies"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ({"spread": 1.5}, ["over-dispersive"]),
        ({"spread": 0.67}, ["under-dispersive"]),
        ({"bias": 0.3}, ["biased"]),
        ({"bias": -0.3, "spread": 0.67}, ["biased", "under-dispersive"]),
        ({"shift": 1}, ["unrelated", "under-dispersive"]),
        ({"shift": 7}, ["unrelated", "under-dispersive"]),
        ({}, ["reliable"]),
    ],
)
def test_each_error_is_called_by_its_name(errors, kind):
    for seed in range(5):
        assert kinds(score(Posterior(8), seed, 40, 16, **errors)) == kind


def test_coverage_tells_too_wide_from_too_narrow():
    wide, narrow = (linearize(score(Posterior(8), 2, 40, 16, spread=s)) for s in (1.5, 0.67))
    for key, fraction in (("coverage_50", 0.5), ("coverage_90", 0.9)):
        assert narrow[key].mean() < fraction - 0.05 < fraction + 0.05 < wide[key].mean()


@pytest.mark.slow
def test_exact_ensembles_are_hardly_ever_called_anything_else():
    posterior = Posterior(8)
    wrong = sum(kinds(score(posterior, 100 + k, 20, 8)) != ["reliable"] for k in range(200))
    assert wrong <= 10


@pytest.mark.parametrize("members", [2, 3, 16])
def test_scores_are_those_of_scoringrules(members):
    draw = np.random.default_rng(5)
    made, truth = draw.normal(3, 2, (members, 2, 50)), draw.normal(size=(2, 50))
    made[:, 0, :10] = truth[0, :10]
    crps = scoringrules.crps_ensemble(truth, np.moveaxis(made, 0, -1), estimator="fair")
    assert fair_crps(made, truth) == pytest.approx(crps, abs=1e-6)
    energy = scoringrules.es_ensemble(truth, np.moveaxis(made, 0, 1), estimator="fair")
    assert energy_score(made, truth) * math.sqrt(50) == pytest.approx(energy, abs=1e-6)


def test_ranks_share_ties_and_cover_their_intervals():
    made, truth = np.array([1, 2, 2, 3.0])[:, None, None], np.array([[2.0]])
    assert rank_frequencies(made, truth)[0].tolist() == [0, 1 / 3, 1 / 3, 1 / 3, 0]
    assert rank_frequencies(made, truth + 9)[0].tolist() == [0, 0, 0, 0, 1]
    draw = np.random.default_rng(2)
    for members in (2, 5, 16):  # coverage is exact for any number of members, and for levels
        made, truth = draw.integers(0, 9, (members, 1, 40_000)), draw.integers(0, 9, (1, 40_000))
        scores = EnsembleScores.from_real(members, truth[None, ..., None])
        scores.add(made[..., None], truth[..., None], made[:0, ..., None], None)
        found = linearize(scores)
        assert found["coverage_50"].item() == pytest.approx(0.5, abs=0.015)
        assert found["coverage_90"].item() == pytest.approx(0.9, abs=0.015)


def test_standard_errors_are_those_of_repetitions():
    posterior, values = Posterior(8), []
    for seed in range(60):
        scores = score(posterior, 1000 + seed, 30, 6, spread=0.8)
        values.append(ensembles.compute(SimpleNamespace(ensembles=scores)))
    for key in ("crps", "rmse_of_mean", "spread_error_ratio", "coverage_90", "energy_score"):
        errors = np.mean([found[f"{key}_standard_error"] for found in values])
        assert 0.7 < errors / np.std([found[key] for found in values]) < 1.4, key


def test_details_show_scales_spread_and_the_power_that_a_mean_lacks():
    posterior = Posterior(16)
    shown = ensembles.details(SimpleNamespace(ensembles=score(posterior, 3, 60, 8)))
    assert [row["width"] for row in shown["widths"]] == [2, 4, 8]
    crps = [row["crps"] for row in shown["widths"]]
    assert crps == sorted(crps, reverse=True)
    assert sum(row["fraction"] for row in shown["bins"]) == pytest.approx(1, abs=0.01)
    power = {name: np.array(side) for name, side in shown["spectrum"].items()}
    assert power["mean"][-1] < 0.3 * power["real"][-1]
    assert power["members"][-1] == pytest.approx(power["real"][-1], rel=0.1)
    assert len(shown["channels"]) == 1


def test_bins_find_the_spread_of_each_point():
    draw, scores = np.random.default_rng(8), EnsembleScores.from_real(8, np.ones((1, 1, 2, 500)))
    spread = np.array([[0.25], [1.2]])
    for _ in range(30):
        sample = spread * draw.normal(size=(9, 1, 2, 500))
        scores.add(sample[:8], sample[8], sample[:0], None)
    bins = ensembles.details(SimpleNamespace(ensembles=scores))["bins"]
    assert len(bins) > 2
    for row in bins:  # by chance, members of one point are in several bins
        assert abs(row["spread_error_ratio"] - 1) < 4 * row["spread_error_ratio_standard_error"]
    for k, right in ((0, 0.25), (-1, 1.2)):
        assert bins[k]["spread"] == pytest.approx(right * math.sqrt(1 + 1 / 4), rel=0.1)


def test_remarks_say_what_is_right_and_every_number_is_shown():
    scores = score(Posterior(8), 3, 40, 16, spread=0.67)
    evaluation = SimpleNamespace(ensembles=scores)
    facts = Facts({}, 40, 40, 0, True, None, {"ensembles": ensembles.details(evaluation)})
    (remark,) = ensembles.remarks(facts)
    assert str(remark).startswith("under-dispersive: truth lies outside of 2")
    assert "where 11.8% is right" in str(remark)
    finding = {"kind": "biased", "channel": 1, "value": -3, "value_standard_error": 1, "outside": 0}
    several = {"fields": 40, "members": 16, "channels": [{}] * 3, "findings": [finding]}
    (remark,) = ensembles.remarks(replace(facts, details={"ensembles": several}))
    assert str(remark) == "biased: in channel 1, members are too low by 3.0 ± 1.0"
    shown = {n.key for n in numbers() if n.question == "ensembles"} | {*METRICS["ensembles"].BESIDE}
    found = {key.removesuffix("_standard_error") for key in ensembles.compute(evaluation)}
    assert shown == found | {"crps_of_given"}
    part = scores[np.arange(40) < 5]
    few = Facts(
        {}, 5, 5, 0, True, None, {"ensembles": ensembles.details(SimpleNamespace(ensembles=part))}
    )
    assert "too few" in str(next(iter(ensembles.remarks(few))))
    other = SimpleNamespace(ensembles=score(Posterior(8), 3, 40, 16, spread=0.7))
    paired = ensembles.difference_errors(evaluation, other)
    assert 0 < paired["crps"] < ensembles.compute(evaluation)["crps_standard_error"] / 5
