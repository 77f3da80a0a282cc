"""Bits per dimension: the variational bound in its three parts, over real images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NEEDS = ("bits",)


class Parts(Protocol):
    """What this metric reads: bits per dimension of each image, (N, 3): L_T, L_1...T-1, L_0."""

    @property
    def bits(self) -> Array: ...


def compute(evaluation: Parts) -> dict[str, float]:
    """The mean bound over images with its standard error, and the means of its parts.

    The parts are those of Ho et al. 2020, eq. 5: the prior's L_T, the sum of L_1 ... L_T-1, and
    the decoder's L_0.
    """
    bits = evaluation.bits
    total = bits.sum(1)
    spread = float(total.std(ddof=1)) / math.sqrt(len(total)) if len(total) > 1 else math.nan
    prior, middle, decoder = (float(v) for v in bits.mean(0))
    return {
        "bits_per_dim": float(total.mean()),
        "bits_per_dim_standard_error": spread,
        "bits_prior": prior,
        "bits_middle": middle,
        "bits_decoder": decoder,
    }
