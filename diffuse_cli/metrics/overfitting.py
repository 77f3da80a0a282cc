"""Bits per dimension of training images against those of held-out ones.

Their difference is the first sign of overfitting, long before samples are copies (Nichol & Dhariwal
2021, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.metrics import Facts, Measured, Number, Remark
from diffuse_cli.metrics._pairing import mean_error

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NEEDS = ("bits", "train_bits")

NUMBERS = (
    Number(
        "bits_per_dim_train",
        "of training images",
        "The same bound for images the model was trained on.",
        "reference",
        "bits_per_dim",
        "prediction",
        part=True,
        axis="bits per dimension",
    ),
    Number(
        "bits_per_dim_gap",
        "held-out less training",
        "How much more images cost that the model was not trained on. Clearly above 0: it has "
        "memorised its training images.",
        "reference",
        0.0,
        "prediction",
        part=True,
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Whether held-out images cost more."""
    if "bits_per_dim_gap" not in facts:
        return
    gap = facts["bits_per_dim_gap"]
    if gap.above(Measured(0.0)):
        yield Remark(
            "overfitting",
            "serious",
            "held-out images cost {gap} bits per dimension more than training images do; train "
            "for fewer steps, or on more images",
            {"gap": gap},
        )
    elif not (facts.stored and facts["bits_per_dim"].above(facts.stored)):  # predicts neither
        yield Remark(
            "overfitting",
            "fine",
            "no sign: held-out images cost {gap} bits per dimension more than training images do, "
            "which is not clearly above 0",
            {"gap": gap},
        )


class Parts(Protocol):
    """Bits per dimension of held-out and of training images, (N, 3) and (M, 3)."""

    bits: Array
    train_bits: Array


def compute(evaluation: Parts) -> dict[str, float]:
    """`bits_per_dim_train`, and `bits_per_dim_gap`: held-out less training, positive if overfitted.

    Empty if a side has fewer than two images, which give no error.
    """
    held_out, train = evaluation.bits.sum(1), evaluation.train_bits.sum(1)
    if min(len(held_out), len(train)) < 2:
        return {}
    errors = [mean_error(bits) for bits in (held_out, train)]
    return {
        "bits_per_dim_train": float(train.mean()),
        "bits_per_dim_train_standard_error": errors[1],
        "bits_per_dim_gap": float(held_out.mean() - train.mean()),
        "bits_per_dim_gap_standard_error": math.hypot(*errors),
    }


def difference_errors(a: Parts, b: Parts) -> dict[str, float]:
    """Those of both numbers, by the differences of each image's bits."""
    held_out, train = (b.bits - a.bits).sum(1), (b.train_bits - a.train_bits).sum(1)
    errors = [mean_error(apart) for apart in (held_out, train)]
    return {"bits_per_dim_train": errors[1], "bits_per_dim_gap": math.hypot(*errors)}
