"""Bits per dimension of training images, beside those of held-out ones.

A model that learned the distribution codes both alike; their difference is the first sign of
overfitting, long before copies appear among samples (Nichol & Dhariwal 2021, section 3.3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NEEDS = ("bits", "train_bits")


class Parts(Protocol):
    """Bits per dimension of held-out and of training images, (N, 3) and (M, 3)."""

    @property
    def bits(self) -> Array: ...

    @property
    def train_bits(self) -> Array: ...


def compute(evaluation: Parts) -> dict[str, float]:
    """`bits_per_dim_train`, and `bits_per_dim_gap`: held-out less training, positive if overfitted.

    Nothing where either side has fewer than two images, of which no error can be had.
    """
    held_out, train = evaluation.bits.sum(1), evaluation.train_bits.sum(1)
    if min(len(held_out), len(train)) < 2:
        return {}
    errors = [float(bits.std(ddof=1)) / math.sqrt(len(bits)) for bits in (held_out, train)]
    return {
        "bits_per_dim_train": float(train.mean()),
        "bits_per_dim_train_standard_error": errors[1],
        "bits_per_dim_gap": float(held_out.mean() - train.mean()),
        "bits_per_dim_gap_standard_error": math.hypot(*errors),
    }
