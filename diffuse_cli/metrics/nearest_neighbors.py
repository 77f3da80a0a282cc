"""Squared Euclidean distances by matrix products in blocks, and nearest neighbors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from diffuse_cli.media import Array

BLOCK = 1000
"""Most rows and columns of distances in memory at a time."""


NUMBERS = 2**26
"""Most elements of the rows to compare at a time."""


def blocks(n: int, width: int = 1) -> Iterator[slice]:
    """Cut 0 ... n - 1 into slices of at most `BLOCK` rows and `NUMBERS` elements.

    Args:
        width: the number of elements per row.
    """
    rows = max(1, min(BLOCK, NUMBERS // width))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return |x_i - y_j|^2 of float64 rows (n, d) and (m, d): (n, m)."""
    found = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2)
    return found.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def center_features(*arrays: Array) -> list[torch.Tensor]:
    """Subtract the mean of the first array (N, d) from all, float64, to reduce rounding errors."""
    mean = arrays[0].mean(0, dtype=np.float64)
    return [torch.from_numpy(np.asarray(a, np.float64) - mean) for a in arrays]


def merge(
    kept: tuple[torch.Tensor, torch.Tensor] | None, found: torch.Tensor, start: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the k nearest neighbors so far with a block of distances.

    Args:
        kept: the distances and columns of the neighbors so far.
        found: the distances (n, m) to the columns from `start` on.

    Returns:
        The distances (n, k), ascending, and their columns.
    """
    values, columns = found.topk(min(k, found.shape[1]), 1, largest=False)
    columns = columns + start
    if kept is not None:
        values, columns = torch.cat([kept[0], values], 1), torch.cat([kept[1], columns], 1)
    order = values.argsort(dim=1, stable=True)[:, :k]
    return values.gather(1, order), columns.gather(1, order)


def neighbors(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared distances of each row (n, d) to its k nearest rows, and their indices.

    Both are (n, k), for n > k.
    """
    distances = x.new_empty(len(x), k)
    places = torch.empty(len(x), k, dtype=torch.int64)
    for i in blocks(len(x)):
        kept = None
        for j in blocks(len(x)):
            found = squared_distances(x[i], x[j])
            if i == j:
                found.fill_diagonal_(torch.inf)
            kept = merge(kept, found, j.start, k)
        assert kept is not None
        distances[i], places[i] = kept
    return distances, places
