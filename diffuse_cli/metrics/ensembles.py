"""Ensembles of samples with the same condition: scores, spread against error, and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from diffuse_cli.metrics import Facts, Measurement, MetricInputs, MetricNumber, Remark
from diffuse_cli.metrics.ensemble_scores import (
    COVERED,
    FEWEST,
    NOTABLE,
    judge,
    linearize,
    linearize_ratio,
    list_widths,
)
from diffuse_cli.metrics.estimates import average, average_all, list_averages, standard_errors

NEEDS = ("ensembles",)
OPTION = "members"

MEMBERS, RARE = 16, 0.001
"""Default number of members, and fraction of points up to which a bin of spread is left out."""

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
