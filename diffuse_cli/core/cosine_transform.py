"""The orthonormal cosine transform (DCT-II) of samples, a matrix for each spatial dimension."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def cosines(side: int, count: int, rounded: str = "float64") -> Any:
    """Return the first rows of the transform of `side` values, a float64 array (count, side).

    Args:
        rounded: the type in which angular frequencies are computed.
    """
    import numpy as np

    frequencies = np.arange(count, dtype=rounded) * np.asarray(math.pi / side, rounded)
    rows = np.cos(np.outer(frequencies.astype("float64"), np.arange(side) + 0.5))
    rows *= math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows


@functools.lru_cache(maxsize=32)
def basis(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of the cosine transform of a side, with a row for each frequency."""
    import torch

    with torch.inference_mode(False):  # the cached matrix may later be used with gradients
        return torch.from_numpy(cosines(side, side)).to(dtype).to(device)


def apply_bases(x: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Return each spatial dimension of x (B, C, *size) times the matrix that belongs to it."""
    for dim, matrix in enumerate(bases, 2):
        x = (x.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)
    return x


def scale_frequencies(x: Tensor, gains: Tensor) -> Tensor:
    """Multiply each frequency of x (B, C, *size) by a gain, (*size)."""
    bases = [basis(side, x.dtype, x.device) for side in x.shape[2:]]
    return apply_bases(apply_bases(x, bases) * gains, [matrix.mT for matrix in bases])
