"""Distributions of the values of samples per channel: means, standard deviations and quantiles.

They need no network. The distance of two distributions is the Wasserstein distance of order 1
(Villani 2003, remark 2.19):

    W = integral |F(x) - G(x)| dx = E phi(real) - E phi(generated)

F and G are the cumulative distributions, and the slope of phi is the sign of G - F. Samples are
independent, but not the values in a sample, so standard errors follow from the means of samples: of
phi for W, and of the values for the mean. Values of at most 16 bits are counted per level. Floats
are counted in bins of a few thousandths of a standard deviation, narrower near the mean and wider
in the tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from diffuse_cli.metrics import (
    SIGNIFICANT,
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
    presentation,
    read_measurement,
)
from diffuse_cli.metrics.channel_distributions import difference_error

NEEDS = ("marginals",)

NOTABLE = 0.1
"""Fraction of the real standard deviation above which shifts and changes are called poor."""

_number = partial(MetricNumber, question="numbers")

NUMBERS = (
    _number(
        "wasserstein",
        "Wasserstein distance",
        "Distance between the distributions of the values of generated and real samples, a mean "
        "over channels. In levels, or for floats in standard deviations.",
        "lower",
        "wasserstein_floor",
        tolerance="wasserstein_tolerance",
    ),
    _number(
        "mean_shift",
        "shift of the mean",
        "Mean of the generated values minus mean of the real values, in the channel with the "
        "largest difference. In levels, or for floats in standard deviations.",
        "reference",
        0.0,
        place=1,
        tolerance="mean_shift_tolerance",
    ),
    _number(
        "mean_variety",
        "variety of means",
        "Standard deviation of the means of generated samples, divided by the same for real "
        "samples. For images, it is below 1 if they are too similar in brightness.",
        "reference",
        1.0,
        place=2,
        tolerance=NOTABLE,
    ),
)

BESIDE = ("wasserstein_floor", "wasserstein_tolerance", "mean_shift_tolerance")

LISTED = 3
"""Most channels in a remark."""


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `wasserstein` and its floor, `mean_shift` and `mean_variety`, with standard errors.

    The tolerance of the shift is larger for many channels, of which it is the largest.
    """
    marginals = evaluation.marginals
    k, spreads = marginals.farthest_channel, marginals.spreads
    chance = _errors_of_largest(len(spreads)) * marginals.shifts[k].error()
    result = {
        **marginals.whole.to_entries("wasserstein"),
        **marginals.shifts[k].to_entries("mean_shift"),
        "wasserstein_tolerance": NOTABLE * sum(spreads) / len(spreads),
        "mean_shift_tolerance": max(NOTABLE * spreads[k], chance),
    }
    if marginals.variety is not None:
        result |= marginals.variety.to_entries("mean_variety")
    if marginals.floor is not None:
        result |= marginals.floor.to_entries("wasserstein_floor")
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of the distance, the shift of a channel, and the spread."""
    marginals_a, marginals_b = a.marginals, b.marginals
    result = {"wasserstein": difference_error(*marginals_a.samples, marginals_b.samples[1])}
    if (k := marginals_a.farthest_channel) == marginals_b.farthest_channel:
        result["mean_shift"] = marginals_b.shifts[k].subtract(marginals_a.shifts[k]).error()
    if marginals_a.variety is not None and marginals_b.variety is not None:
        result["mean_variety"] = marginals_b.variety.subtract(marginals_a.variety).error()
    return result


def details(evaluation: MetricInputs) -> list[dict[str, Any]]:
    """Return statistics of each channel, in the units of stored values.

    They are the mean, standard deviation and quantiles of both sides, the shift, the distance and
    the densities.
    """
    return evaluation.marginals.channels


def _errors_of_largest(channels: int) -> float:
    """Return the standard errors above which the largest of many shifts is significant.

    It can exceed 3 standard errors by chance: this is a union bound.
    """
    return math.sqrt(SIGNIFICANT**2 + 2 * math.log(max(1, channels)))


def remarks(facts: Facts) -> Iterator[Remark]:
    """Report means and standard deviations that are wrong by more than their standard errors."""
    channels = facts.details.get("marginals", ())
    many = _errors_of_largest(len(channels))
    shifts, spreads = [], []
    for k, channel in enumerate(channels):
        shift = read_measurement(channel, "shift")
        if abs(shift.value) > many * shift.error:
            unit = channel["real"]["deviation"] or 1.0
            shifts.append((abs(shift.value) / unit, facts.words.channel(k), shift))
        if channel["contrast"] is None:
            continue
        ratio = read_measurement(channel, "contrast")
        if abs(ratio.value - 1) > many * ratio.error:
            spreads.append((abs(ratio.value - 1), facts.words.channel(k), channel))
    if shifts:
        yield _mean_remark(facts, sorted(shifts, key=lambda s: -s[0]))
    elif channels:
        yield Remark("mean", "fine", "no channel's mean is measurably wrong")
    if spreads:
        yield _contrast_remark(facts, *max(spreads, key=lambda s: s[0]))
    if "mean_variety" in facts:
        variety, one = facts["mean_variety"], Measurement(1.0)
        if one.is_above(variety) or variety.is_above(one):
            amount = "little" if variety.value < 1 else "much"
            words = (
                f"the means of generated {facts.words.many} differ too {amount} from each other: "
                f"{variety} times as much as for real {facts.words.many}"
            )
            level = "poor" if abs(variety.value - 1) > NOTABLE else "finding"
            yield Remark("variety of means", level, words)
    elif channels:
        words = f"not measured, because all real {facts.words.many} have the same mean"
        yield Remark("variety of means", "caution", words)


def _mean_remark(facts: Facts, shifts: Sequence[tuple[float, str, Measurement]]) -> Remark:
    """Return the remark on means, by direction."""
    words, unit = facts.words, " levels" if facts.levels else ""
    clauses = []
    for direction, sign in ((words.low, -1), (words.high, 1)):
        channels = [(name, shift) for _, name, shift in shifts if shift.value * sign > 0]
        parts = [
            f"{Measurement(abs(shift.value), shift.error)}{unit if k == 0 else ''} in {name}"
            for k, (name, shift) in enumerate(channels[:LISTED])
        ]
        if len(channels) > LISTED:
            parts.append(f"in {len(channels) - LISTED} more channels")
        if parts:
            clauses.append(f"too {direction} by {presentation.join_names(parts)}")
    level = "poor" if shifts[0][0] > NOTABLE else "finding"
    return Remark("mean", level, f"generated {words.many} are {', and '.join(clauses)}")


def _contrast_remark(facts: Facts, change: float, name: str, channel: Mapping[str, Any]) -> Remark:
    """Return the remark on the channel with the largest change of the standard deviation."""
    many, how = facts.words.many, "low" if channel["contrast"] < 1 else "high"
    real, fake = (read_measurement(channel[side], "deviation") for side in ("real", "generated"))
    text = f"too {how} in {name}: generated {many} have a standard deviation of {fake}, "
    level = "poor" if change > NOTABLE else "finding"
    return Remark("contrast", level, f"{text}real {many} of {real}")
