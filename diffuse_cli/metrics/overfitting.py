"""Bits per dimension of training images compared with held-out images.

Their difference is the first sign of overfitting, long before samples are copies (Nichol & Dhariwal
2021, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from diffuse_cli.metrics import Facts, Measurement, MetricInputs, MetricNumber, Remark
from diffuse_cli.metrics.estimates import average

NEEDS = ("bits", "train_bits")

_number = partial(MetricNumber, direction="reference", question="prediction", part=True)

NUMBERS = (
    _number(
        "bits_per_dim_train",
        "of training samples",
        "The same bound for training samples.",
        ideal="bits_per_dim",
        axis="bits per dimension",
    ),
    _number(
        "bits_per_dim_gap",
        "held-out minus training",
        "The additional cost of samples that were not used in training. If it is clearly above 0, "
        "the model has memorized training samples.",
        ideal=0.0,
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Report whether held-out images cost more."""
    if "bits_per_dim_gap" not in facts:
        return
    gap, many = facts["bits_per_dim_gap"], facts.words.many
    bits = "bits_per_dim" if "bits_per_dim" in facts else "bits_per_dim_train"
    words = f"held-out {many} cost {gap} bits per dimension more than training {many}"
    if gap.is_above(Measurement(0.0)):
        words += f". Train for fewer steps, or on more {many}"
        yield Remark("overfitting", "serious", words)
    elif not facts[bits].is_above(facts.raw_bits):
        words = f"no sign: {words}, which is not clearly above 0"
        yield Remark("overfitting", "fine", words)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `bits_per_dim_train`, and `bits_per_dim_gap`, which is positive after overfitting.

    The gap is held-out minus training. With fewer than two images on a side there is no standard
    error, so the result is empty.
    """
    held_out, train = evaluation.bits.sum(1), evaluation.train_bits.sum(1)
    if min(len(held_out), len(train)) < 2:
        return {}
    a, b = average(held_out), average(train)
    gap = Measurement(a.value - b.value, math.hypot(a.error, b.error))
    return {**b.to_entries("bits_per_dim_train"), **gap.to_entries("bits_per_dim_gap")}


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of both values, from differences per image."""
    held_out, train = (b.bits - a.bits).sum(1), (b.train_bits - a.train_bits).sum(1)
    errors = [average(differences)[1] for differences in (held_out, train)]
    return {"bits_per_dim_train": errors[1], "bits_per_dim_gap": math.hypot(*errors)}
