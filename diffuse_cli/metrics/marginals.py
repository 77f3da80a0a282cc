"""The numbers in samples, channel by channel, without a network: their means, deviations and
quantiles, and how far their distributions are apart.

The distance is Wasserstein's of order 1 (Villani 2003, remark 2.19):

    W = integral |F(x) - G(x)| dx = E phi(real) - E phi(generated)

of the cumulative shares F and G, where the slope of phi is the sign of G - F. Samples are the
independent units, not the numbers in them, so errors are by the means of samples: of phi for W, of
the numbers themselves for the mean. Numbers of 16 bits or fewer are counted level by level; floats
in bins of a few thousandths of a deviation, narrower near the mean and wider in the tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from diffuse_cli.metrics.channel_distributions import difference_error
from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.presentation import (
    SIGNIFICANT,
    Facts,
    Measured,
    MetricNumber,
    Remark,
    listed,
)

NEEDS = ("marginals",)

_number = partial(MetricNumber, question="numbers")

NUMBERS = (
    _number(
        "wasserstein",
        "distance of the numbers",
        "How far the numbers would have to move, on average, for their distribution to be that of "
        "real ones (Wasserstein distance, mean over channels): in levels, of floats in deviations.",
        "lower",
        "wasserstein_floor",
    ),
    _number(
        "mean_shift",
        "shift of the mean",
        "The mean of generated numbers less that of real ones, in the channel where they are "
        "farthest apart: in levels, of floats in deviations.",
        "reference",
        0.0,
        place=1,
    ),
    _number(
        "mean_variety",
        "variety of means",
        "How much the means of samples differ from each other, over how much those of real ones "
        "do: of images, whether some are bright and some dark.",
        "reference",
        1.0,
        place=2,
    ),
)

BESIDE = ("wasserstein_floor",)

NOTABLE = 0.1
"""Shifts and changes of deviation beyond this part of the real deviation are called poor."""

TOLD = 3
"""Channels that a remark names at most."""


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """`wasserstein` and its floor, `mean_shift` and `mean_variety`, with standard errors."""
    found = evaluation.marginals
    result = {
        **found.whole.by("wasserstein"),
        **found.shifts[found.farthest].by("mean_shift"),
    }
    if found.variety is not None:
        result |= found.variety.by("mean_variety")
    if found.floor is not None:
        result |= found.floor.by("wasserstein_floor")
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Those of the distance, of the shift of one channel, and of the variety of means."""
    one, other = a.marginals, b.marginals
    result = {"wasserstein": difference_error(*one.samples, other.samples[1])}
    if (k := one.farthest) == other.farthest:
        result["mean_shift"] = other.shifts[k].less(one.shifts[k]).error()
    if one.variety is not None and other.variety is not None:
        result["mean_variety"] = other.variety.less(one.variety).error()
    return result


def details(evaluation: MetricInputs) -> list[dict[str, Any]]:
    """Each channel: mean, deviation and quantiles of both sides, shift, distance, and densities;
    all in the units of stored numbers."""
    return evaluation.marginals.channels


# -- remarks --------------------------------------------------------------------------------------


def remarks(facts: Facts) -> Iterator[Remark]:
    """Where means and deviations are off by more than their errors, in plain units."""
    channels = facts.details.get("marginals", ())
    # The largest of many is beyond three errors by chance: a union bound over the channels.
    many = math.sqrt(SIGNIFICANT**2 + 2 * math.log(max(1, len(channels))))
    shifts, spreads = [], []
    for k, channel in enumerate(channels):
        real, fake = channel["real"], channel["generated"]
        unit = real["deviation"] or 1.0
        apart = Measured(channel["shift"], channel["shift_standard_error"])
        if abs(apart.value) > many * apart.error:
            shifts.append((abs(apart.value) / unit, facts.words.channel(k), apart))
        if channel["contrast"] is None:
            continue
        ratio = Measured(channel["contrast"], channel["contrast_standard_error"])
        if abs(ratio.value - 1) > many * ratio.error:
            spreads.append((abs(ratio.value - 1), facts.words.channel(k), ratio, real, fake))
    if shifts:
        yield _shifted(facts, sorted(shifts, key=lambda s: -s[0]))
    elif channels:
        yield Remark("mean", "fine", "no channel's mean is off by more than its error")
    if spreads:
        yield _spread(facts, sorted(spreads, key=lambda s: -s[0]))
    if "mean_variety" in facts:
        variety = facts["mean_variety"]
        if Measured(1.0).above(variety):
            words = f"the means of generated {facts.words.many} vary too little: {variety} of the"
            yield Remark("variety of means", "finding", f"{words} deviation between real ones")
    elif channels and min(facts.real, facts.generated) > 1:
        words = f"not measured, as the means of real {facts.words.many} do not vary"
        yield Remark("variety of means", "caution", words)


def _shifted(facts: Facts, shifts: Sequence[tuple[float, str, Measured]]) -> Remark:
    """The sentence on means, by direction."""
    words, unit = facts.words, " levels" if facts.levels else ""
    said = []
    for direction, sign in ((words.low, -1), (words.high, 1)):
        ours = [(name, apart) for _, name, apart in shifts if apart.value * sign > 0]
        parts = [
            f"{Measured(abs(apart.value), apart.error)}{unit if k == 0 else ''} in {name}"
            for k, (name, apart) in enumerate(ours[:TOLD])
        ]
        if len(ours) > TOLD:
            parts.append(f"in {len(ours) - TOLD} more channels")
        if parts:
            said.append(f"too {direction} by {listed(parts)}")
    level = "poor" if shifts[0][0] > NOTABLE else "finding"
    return Remark("mean", level, f"generated {words.many} are {', and '.join(said)}")


def _spread(facts: Facts, spreads: Sequence[tuple[float, str, Measured, Any, Any]]) -> Remark:
    """The sentence on the channel whose deviation is farthest off."""
    far, name, ratio, real, fake = spreads[0]
    how = "little" if ratio.value < 1 else "much"
    there = Measured(fake["deviation"], fake["deviation_standard_error"])
    usual = Measured(real["deviation"], real["deviation_standard_error"])
    level = "poor" if far > NOTABLE else "finding"
    says = f"numbers of generated {facts.words.many} vary too {how} in {name}: by {there}, and "
    return Remark("contrast", level, f"{says}real ones by {usual}")
