"""Bits per dimension of training images against those of held-out ones.

Their difference is the first sign of overfitting, long before samples are copies (Nichol & Dhariwal
2021, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.presentation import Facts, Measured, MetricNumber, Remark, with_error
from diffuse_cli.metrics.sample_statistics import average

NEEDS = ("bits", "train_bits")

_number = partial(MetricNumber, direction="reference", question="prediction", part=True)

NUMBERS = (
    _number(
        "bits_per_dim_train",
        "of training samples",
        "The same bound for samples the model was trained on.",
        ideal="bits_per_dim",
        axis="bits per dimension",
    ),
    _number(
        "bits_per_dim_gap",
        "held-out less training",
        "How much more samples cost that the model was not trained on. Clearly above 0: it has "
        "memorised its training samples.",
        ideal=0.0,
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Whether held-out images cost more."""
    if "bits_per_dim_gap" not in facts:
        return
    gap, many = facts["bits_per_dim_gap"], facts.words.many
    words = f"held-out {many} cost {gap} bits per dimension more than training {many} do"
    if gap.above(Measured(0.0)):
        words += f"; train for fewer steps, or on more {many}"
        yield Remark("overfitting", "serious", words)
    elif _predicts(facts):
        words = f"no sign: {words}, which is not clearly above 0"
        yield Remark("overfitting", "fine", words)


def _predicts(facts: Facts) -> bool:
    """Whether samples take no more bits than stored as they are: of held-out ones if another metric
    measured those, else of training ones."""
    key = "bits_per_dim" if "bits_per_dim" in facts else "bits_per_dim_train"
    return not (facts.stored and facts[key].above(facts.stored))


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """`bits_per_dim_train`, and `bits_per_dim_gap`: held-out less training, positive if overfitted.

    Empty if a side has fewer than two images, which give no error.
    """
    held_out, train = evaluation.bits.sum(1), evaluation.train_bits.sum(1)
    if min(len(held_out), len(train)) < 2:
        return {}
    (of_others, error), (of_training, training_error) = average(held_out), average(train)
    gap = of_others - of_training, math.hypot(error, training_error)
    return {
        **with_error("bits_per_dim_train", of_training, training_error),
        **with_error("bits_per_dim_gap", *gap),
    }


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Those of both numbers, by the differences of each image's bits."""
    held_out, train = (b.bits - a.bits).sum(1), (b.train_bits - a.train_bits).sum(1)
    errors = [average(apart)[1] for apart in (held_out, train)]
    return {"bits_per_dim_train": errors[1], "bits_per_dim_gap": math.hypot(*errors)}
