"""Ensembles of samples with the same condition: scores, spread against error, and ranks.

Every value belongs to one real sample, a field, and its members. Points of a field depend on each
other, so standard errors and the chance band of ranks are over fields, never over points. This
needs no thinning of points, and no length of their dependence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    SIGNIFICANT,
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
    spectrum,
)
from diffuse_cli.metrics.estimates import (
    average,
    average_all,
    list_averages,
    measure_inner_variance,
    moments,
    standard_errors,
)

NEEDS = ("ensembles",)
OPTION = "members"

MEMBERS, RARE = 16, 0.001
"""Default number of members, and fraction of points up to which a bin of spread is left out."""

FEWEST = 10
"""Fewer fields are too few for a verdict."""

NOTABLE = 0.1
"""Difference of the ratio from 1, and bias as a fraction of the error, that count as close."""

RELATED = 2
"""Standard errors by which members must be farther from another field than from their own."""

COVERED = {"coverage_50": 0.5, "coverage_90": 0.9}
"""Fraction of the central interval of each coverage."""

EDGES = 2.0 ** np.arange(-5, 2)
"""Edges of the bins of spread, in standard deviations of real values."""

LEAST = 1e-300

NUMBERS = tuple(
    MetricNumber(key, label, says, direction, ideal, "ensembles", place, part=label[:3] == "of ",
                 tolerance=tolerance)
    for place, (key, label, says, direction, ideal, tolerance) in enumerate((
        ("crps", "CRPS",
         "Continuous ranked probability score: mean distance of members from the real value, minus "
         "half their mean distance from each other, in the units of the data. It does not depend "
         "on the number of members. The reference is the climatology, other real samples as "
         "members.",
         "lower", "crps_of_climatology", None),
        ("crps_of_given", "of the conditioning image",
         "For comparison: the conditioning image as the only member, enlarged if it is smaller.",
         "", None, None),
        ("mae_of_mean", "of the ensemble mean",
         "For comparison: the mean of the members as the only member. This is its mean absolute "
         "error.",
         "", None, None),
        ("crps_of_mean_field", "CRPS of the spatial mean",
         "The same score for the mean over all points of a sample.", "lower", None, None),
        ("rmse_of_mean", "RMSE of the ensemble mean",
         "Root mean squared error of the mean of the members.", "lower", None, None),
        ("energy_score", "energy score",
         "CRPS for whole samples, with their root mean squared distances.", "lower", None, None),
        ("spread_error_ratio", "spread / error",
         "Ratio of the standard deviation of members to the error of their mean, corrected for the "
         "number of members. It is below 1 if members are too alike.",
         "reference", 1.0, NOTABLE),
        ("rank_reliability", "unevenness of ranks",
         "Sum of the differences between the rank histogram of real values among members and a "
         "flat one. The reference is the sum by chance.",
         "below", "rank_reliability_expected", None),
        *((key, f"{fraction:.0%} interval",
           f"Fraction of real values in the central {fraction:.0%} interval of their members.",
           "reference", fraction, NOTABLE / 2) for key, fraction in COVERED.items()),
    ))
)  # fmt: skip

BESIDE = ("crps_of_climatology", "rank_reliability_expected")


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return means over channels, with standard errors over fields."""
    scores = evaluation.ensembles
    entries = average_all({key: values.mean(1) for key, values in linearize(scores).items()})
    # The mean size of a Gaussian error is sqrt(2 / pi) of its standard deviation.
    sizes = math.sqrt(2 / math.pi) * standard_errors(scores.column("ranks")).sum(1)
    return {**entries, "rank_reliability_expected": float(sizes.mean())}


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors from differences per field, except of the absolute values of
    `rank_reliability`, which have a kink at even ranks."""
    values_a, values_b = linearize(a.ensembles), linearize(b.ensembles)
    return {
        key: average((values_b[key] - values).mean(1)).error
        for key, values in values_a.items()
        if key != "rank_reliability" and len(values) == len(values_b.get(key, ()))
    }


def details(evaluation: MetricInputs) -> dict[str, Any]:
    """Return values by channel, width and bin, the rank histogram, spectra and the findings."""
    scores = evaluation.ensembles
    bins = {name: scores.column(f"bin_{name}").sum(1) for name in ("spread", "error", "count")}
    sums = {name: values.sum(0) for name, values in bins.items()}
    ratios = linearize_ratio(bins["spread"], bins["error"])
    values, channels = linearize(scores), range(len(scores.scale))
    spectra = {name: scores.column(f"power_{name}")[:, 0] for name in ("real", "members", "mean")}
    return {
        "members": scores.members,
        "fields": len(scores.fields),
        "findings": judge(scores),
        "channels": [average_all({k: v[:, c] for k, v in values.items()}) for c in channels],
        "widths": [
            {"width": width, **average_all({"crps": scores.column(f"blur_{width}").mean(1)})}
            for width in list_widths(scores.maps["error"].shape[1:])
        ],
        "ranks": list_averages({"frequencies": scores.column("ranks").mean(1)}),
        "bins": [
            {
                "spread": math.sqrt(sums["spread"][k] / sums["count"][k]),
                "error": math.sqrt(sums["error"][k] / sums["count"][k]),
                **average_all({"spread_error_ratio": ratios[:, k]}),
                "fraction": float(sums["count"][k] / sums["count"].sum()),
            }
            for k in np.flatnonzero(sums["count"] > RARE * sums["count"].sum())
        ],
        "spectrum": {"frequencies": scores.shells.frequencies.tolist(), **list_averages(spectra)},
    }


def remarks(facts: Facts) -> Iterator[Remark]:
    """Report the findings in words."""
    described: Mapping[str, Any] = facts.details.get("ensembles") or {}
    if described and described["fields"] < FEWEST:
        text = f"{described['fields']} {facts.words.many} are too few for a verdict on spread"
        yield Remark("ensembles", "caution", f"{text}: use {FEWEST} or more")
    for finding in described.get("findings", ()):
        value = Measurement(finding["value"], finding["value_standard_error"])
        size = Measurement(abs(value.value), value.error)
        way = facts.words.low if value.value < 0 else facts.words.high
        right = 2 / (described["members"] + 1)
        text = {
            "unrelated": "members fit other real samples as well as their own. Train longer, or "
            "check that files of the same name belong together",
            "biased": f"members are too {way} by {size}",
        }.get(
            finding["kind"],
            f"truth lies outside of {finding['outside']:.0%} of ensembles where {right:.1%} is "
            f"right, and spread / error is {value}",
        )
        if len(described["channels"]) > 1 and finding["kind"] != "unrelated":
            text = f"in {facts.words.channel(finding['channel'])}, {text}"
        yield Remark(finding["kind"], "fine" if finding["kind"] == "reliable" else "poor", text)


# Scores of one field, by channel.


def fair_crps(members: Array, truth: Array) -> Array:
    """Return the fair CRPS of members (M, ...) at each point of the truth (...).

    The expected value is the CRPS of the distribution of the members, for every M of at least 2.
    """
    # Ferro 2014, with the sum of all distances from the sorted members.
    count = len(members)
    ranks = np.arange(1 - count, count, 2).reshape(-1, *[1] * truth.ndim)
    between = (ranks * np.sort(members, 0)).sum(0) / (count * (count - 1))
    return np.asarray(np.abs(members - truth).mean(0) - between)


def energy_score(members: Array, truth: Array) -> Array:
    """Return the fair energy score of members (M, C, P) by channel, (C,)."""
    # Gneiting & Raftery 2007, eq. 22, with the root mean square over points as the norm.
    count = len(members)

    def norm(differences: Array) -> Array:
        return np.asarray(np.sqrt(np.square(differences).mean(-1)))

    between = sum(norm(members[i + 1 :] - members[i]).sum(0) for i in range(count - 1))
    return np.asarray(norm(members - truth).mean(0) - between / (count * (count - 1)))


def rank_frequencies(members: Array, truth: Array) -> Array:
    """Return the frequency of each rank of the truth (C, P) among members (M, C, P), (C, M + 1).

    A truth that equals members counts evenly for all ranks that it could have.
    """
    channels, points = truth.shape
    below, equal = (members < truth).sum(0), (members == truth).sum(0)
    changes, rows = np.zeros((channels, len(members) + 2)), np.arange(channels)[:, None]
    np.add.at(changes, (rows, below), 1 / (equal + 1))
    np.add.at(changes, (rows, below + equal + 1), -1 / (equal + 1))
    return np.asarray(changes.cumsum(1)[:, :-1] / points)


def list_widths(size: Sequence[int]) -> list[int]:
    """Return the widths of the blocks of blurred samples: powers of two below the shortest side."""
    return [2**k for k in range(1, 12) if 2**k < min(size)]


@dataclass
class EnsembleScores:
    """Values of ensembles, one field after another.

    Attributes:
        members: the number of members.
        scale, variances: the standard deviation of real values by channel, and the variance
            about the mean of each sample.
        shells: the shells of frequencies of the spectra.
        fields: the values of each field by key, (C,) or (C, K).
        maps: the sums over fields of the `error` of the mean, of its square, and of the square
            that the spread says it has (`squared_spread`), (C, *size).
        last: the truth of the last field.
    """

    members: int
    scale: Array
    variances: Array
    shells: spectrum.Shells
    fields: list[dict[str, Array]] = field(default_factory=list)
    maps: dict[str, Array] = field(default_factory=dict)
    last: Array | None = None

    @classmethod
    def from_real(cls, members: int, real: Array) -> EnsembleScores:
        """Return scores without fields, with the scale of real samples (N, C, *size)."""
        scale = moments(real).deviation
        shells, variances = spectrum.shells(real.shape[2:]), measure_inner_variance(real)
        return cls(members, np.where(scale > 0, scale, 1.0), variances, shells)

    def __getitem__(self, chosen: Array) -> EnsembleScores:
        """Return the values of some fields, by a mask."""
        return replace(self, fields=[self.fields[k] for k in np.flatnonzero(chosen)])

    def add(self, members: Array, truth: Array, climate: Array, given: Array | None) -> None:
        """Add a field.

        Args:
            members: the stored members, (M, C, *size).
            truth: the stored real sample, (C, *size).
            climate: other real samples as members of the climatology, (K, C, *size).
            given: the conditioning image in the space of the sample, if it has one.
        """
        members, truth, climate = (x.astype(np.float64) for x in (members, truth, climate))
        flat, flat_truth = members.reshape(*members.shape[:2], -1), truth.reshape(len(truth), -1)
        error, spread = _error_and_spread(members, truth)
        maps = {"error": error, "squared_error": error**2, "squared_spread": spread}
        self.maps = {key: self.maps.get(key, 0) + values for key, values in maps.items()}
        scores = {
            "crps": fair_crps(members, truth),
            "crps_of_mean_field": fair_crps(flat.mean(2), flat_truth.mean(1)),
            "mae_of_mean": np.abs(error),
            **maps,
        }
        if len(climate) > 1:
            scores["crps_of_climatology"] = fair_crps(climate, truth)
        if given is not None:
            scores["crps_of_given"] = np.abs(given.astype(np.float64) - truth)
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[truth.ndim - 2]
        for width in list_widths(truth.shape[1:]):
            pooled = (pool(torch.from_numpy(x), width).numpy() for x in (members, truth))
            scores[f"blur_{width}"] = fair_crps(*pooled)
        values = {key: score.reshape(len(truth), -1).mean(1) for key, score in scores.items()}
        values["energy_score"] = energy_score(flat, flat_truth)
        values["ranks"] = rank_frequencies(flat, flat_truth)
        values |= self._bin_spread(flat, flat_truth)
        sides = np.concatenate([members, (truth + error)[None], truth[None]])
        power = spectrum.powers(sides, self.shells, self.variances)
        for name, rows in (("members", power[:-2]), ("mean", power[-2:-1]), ("real", power[-1:])):
            values[f"power_{name}"] = rows.mean(0, keepdims=True)
        previous = np.full(truth.shape, np.nan) if self.last is None else self.last
        distances = np.square([truth + error - previous, error]).reshape(2, len(truth), -1).mean(2)
        values["farther"] = -np.diff(np.log(np.maximum(distances, LEAST)), axis=0)[0]
        self.fields.append(values)
        self.last = truth

    def _bin_spread(self, members: Array, truth: Array) -> dict[str, Array]:
        """Return sums of squared spread and error by bin of spread, (C, B), in real variances.

        The bin of a point is of half of its members, and the sums are of the other half. Else bins
        would sort points by chance, and bins of low spread would seem to have too little.
        """
        half = len(members) // 2 * (len(members) > 3)
        _, place = _error_and_spread(members[:half] if half else members, truth)
        error, spread = _error_and_spread(members[half:], truth)
        scale, bins = np.square(self.scale)[:, None], len(EDGES) + 1
        places = np.searchsorted(np.square(EDGES), place / scale)
        places += bins * np.arange(len(scale))[:, None]
        parts = {"spread": spread / scale, "error": error**2 / scale, "count": np.ones_like(spread)}
        sums = {k: np.bincount(places.flat, x.flat, bins * len(scale)) for k, x in parts.items()}
        return {f"bin_{key}": values.reshape(-1, bins) for key, values in sums.items()}

    def column(self, key: str) -> Array:
        """Return the values of all fields, (N, C) or (N, C, K)."""
        return np.stack([values[key] for values in self.fields])


def _error_and_spread(members: Array, truth: Array) -> tuple[Array, Array]:
    """Return the error of the mean of members, and the square that the spread says it has."""
    # Fortin et al. 2014: the mean of M members has 1 / M of their variance more error.
    error, variance = members.mean(0) - truth, members.var(0, ddof=1)
    return np.asarray(error), np.asarray((1 + 1 / len(members)) * variance)


def linearize_ratio(spread: Array, squares: Array) -> Array:
    """Return the ratio of spread to error of fields, from their squares (N, ...)."""
    sums = np.maximum(spread.mean(0), LEAST), np.maximum(squares.mean(0), LEAST)
    return np.asarray(np.sqrt(sums[0] / sums[1]) * (1 + (spread / sums[0] - squares / sums[1]) / 2))


MEANS = (
    "crps", "crps_of_climatology", "crps_of_given", "mae_of_mean", "crps_of_mean_field",
    "energy_score",
)  # fmt: skip


def linearize(scores: EnsembleScores) -> dict[str, Array]:
    """Return a value of each field and channel by key, (N, C).

    Their mean is the value of all fields, and their standard error is its standard error to first
    order.
    """
    values = {key: scores.column(key) for key in MEANS if key in scores.fields[0]}
    spread, squares = scores.column("squared_spread"), scores.column("squared_error")
    rmse = np.sqrt(np.maximum(squares.mean(0), LEAST))
    values["rmse_of_mean"] = rmse + (squares - squares.mean(0)) / (2 * rmse)
    values["spread_error_ratio"] = linearize_ratio(spread, squares)
    # The reliability index: the distance of the rank histogram (Hamill 2001) from a flat one.
    excess = scores.column("ranks") - 1 / (scores.members + 1)
    values["rank_reliability"] = (np.sign(excess.mean(0)) * excess).sum(2)
    # A rank is an interval of probability. Its part in the central interval counts, so the right
    # value is the fraction itself, also if it lies between the ranks of few members.
    ends = np.arange(scores.members + 2) / (scores.members + 1)
    for key, fraction in COVERED.items():
        inside = np.diff(np.clip(ends, (1 - fraction) / 2, (1 + fraction) / 2))
        values[key] = scores.column("ranks") @ inside * (scores.members + 1)
    return values


def judge(scores: EnsembleScores) -> list[dict[str, Any]]:
    """Return the kind of each finding, with its values in the channel where it is clearest.

    A finding is significant and notable in a channel. Fewer than `FEWEST` fields have none.
    """
    count, channels = len(scores.fields), len(scores.scale)
    if count < FEWEST:
        return []
    # A union bound over channels, and the first term from the normal to Student's distribution
    # (Cornish & Fisher 1938), because standard errors come from few fields.
    limit = math.sqrt(SIGNIFICANT**2 + 2 * math.log(channels))
    limit += (limit**3 + limit) / (4 * (count - 1))
    findings: list[dict[str, Any]] = []

    def add(kind: str, values: Array, notable: Array, right: float, limit: float) -> bool:
        """Add a finding if a notable mean is more than `limit` standard errors from `right`."""
        steps = np.abs(values.mean(0) - right) / np.maximum(standard_errors(values), LEAST)
        channel = int(np.where(notable, steps, -1).argmax())
        if is_clear := bool(notable[channel] and steps[channel] >= limit):
            outside = float(scores.column("ranks")[:, channel, [0, -1]].sum(1).mean())
            entries = average(values[:, channel]).to_entries("value")
            findings.append({"kind": kind, "channel": channel, **entries, "outside": outside})
        return is_clear

    farther, every = scores.column("farther")[1:], np.ones(channels, np.bool_)
    if (farther.mean(0) < RELATED * standard_errors(farther)).all():
        add("unrelated", farther, every, 0, 0)
    error, squares = scores.column("error"), scores.column("squared_error")
    bias = error.mean(0)
    biased = np.square(bias) > np.square(NOTABLE) * squares.mean(0)
    if add("biased", error, biased, 0, limit):
        squares = squares - np.where(biased, 2 * bias * error - bias**2, 0)  # errors without it
    ratio = linearize_ratio(scores.column("squared_spread"), squares)
    add("under-dispersive", ratio, ratio.mean(0) < 1 - NOTABLE, 1, limit)
    add("over-dispersive", ratio, ratio.mean(0) > 1 + NOTABLE, 1, limit)
    if not findings:
        add("reliable", ratio, every, 1, 0)
    return findings
