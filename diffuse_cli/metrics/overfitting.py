"""Bits per dimension of training images compared with held-out images.

Their difference is the first sign of overfitting, long before samples are copies (Nichol & Dhariwal
2021, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.presentation import Facts, Measurement, MetricNumber, Remark, make_entries
from diffuse_cli.metrics.sample_statistics import average

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
    words = f"held-out {many} cost {gap} bits per dimension more than training {many}"
    if gap.is_above(Measurement(0.0)):
        words += f". Train for fewer steps, or on more {many}"
        yield Remark("overfitting", "serious", words)
    elif _predicts(facts):
        words = f"no sign: {words}, which is not clearly above 0"
        yield Remark("overfitting", "fine", words)


def _predicts(facts: Facts) -> bool:
    """Whether samples do not take more bits than uncompressed samples.

    It uses held-out samples if they were measured, else training samples.
    """
    key = "bits_per_dim" if "bits_per_dim" in facts else "bits_per_dim_train"
    return not (facts.raw_bits and facts[key].is_above(facts.raw_bits))


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `bits_per_dim_train`, and `bits_per_dim_gap`, which is positive after overfitting.

    The gap is held-out minus training. With fewer than two images on a side there is no standard
    error, so the result is empty.
    """
    held_out, train = evaluation.bits.sum(1), evaluation.train_bits.sum(1)
    if min(len(held_out), len(train)) < 2:
        return {}
    (of_others, error), (of_training, training_error) = average(held_out), average(train)
    gap = of_others - of_training, math.hypot(error, training_error)
    return {
        **make_entries("bits_per_dim_train", of_training, training_error),
        **make_entries("bits_per_dim_gap", *gap),
    }


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of both values, from differences per image."""
    held_out, train = (b.bits - a.bits).sum(1), (b.train_bits - a.train_bits).sum(1)
    errors = [average(differences)[1] for differences in (held_out, train)]
    return {"bits_per_dim_train": errors[1], "bits_per_dim_gap": math.hypot(*errors)}
