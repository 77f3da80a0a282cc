"""Ensembles of samples with the same condition: scores, spread against error, and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    SIGNIFICANT,
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
)
from diffuse_cli.metrics.ensemble_scores import LEAST, EnsembleScores, list_widths
from diffuse_cli.metrics.estimates import average, average_all, list_averages, standard_errors

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
