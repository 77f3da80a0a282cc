"""Squared Euclidean distances by matrix products in blocks, and nearest neighbors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from diffuse_cli.core import Space
from diffuse_cli.media import Array
from diffuse_cli.system import Progress, Work

BLOCK = 1000
"""Most rows and columns of distances in memory at a time."""


NUMBERS = 2**26
"""Most elements of the rows to compare at a time."""

SAME = 1e-10
"""Images with a mean squared difference up to this are the same, as features differ by rounding."""


def blocks(n: int, width: int = 1) -> Iterator[slice]:
    """Cut 0 ... n - 1 into slices of at most `BLOCK` rows and `NUMBERS` elements.

    Args:
        width: the number of elements per row.
    """
    rows = max(1, min(BLOCK, NUMBERS // width))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return |x_i - y_j|^2 of float64 rows (n, d) and (m, d): (n, m)."""
    distances = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2)
    return distances.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def merge(
    nearest: tuple[torch.Tensor, torch.Tensor] | None, distances: torch.Tensor, start: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the k nearest neighbors so far with a block of distances.

    Args:
        nearest: the distances and columns of the neighbors so far.
        distances: the distances (n, m) to the columns from `start` on.

    Returns:
        The distances (n, k), ascending, and their columns.
    """
    values, columns = distances.topk(min(k, distances.shape[1]), 1, largest=False)
    columns = columns + start
    if nearest is not None:
        values, columns = torch.cat([nearest[0], values], 1), torch.cat([nearest[1], columns], 1)
    order = values.argsort(dim=1, stable=True)[:, :k]
    return values.gather(1, order), columns.gather(1, order)


def to_comparable(space: Space, stored: Array) -> Array:
    """Return stored samples as values to compare: floats in the model's space."""
    if space.levels is not None:
        return stored
    values: Array = space.to_model(torch.from_numpy(np.ascontiguousarray(stored))).numpy()
    return values


@dataclass(frozen=True)
class NearestDistances:
    """Distances to the nearest training image in one space.

    Attributes:
        samples: the distances of generated images, (N,).
        references: the distances of real images that are not copies, (M,).
        places: the index of the nearest training image of each generated image, and then of each
            reference, (N + M,).
    """

    samples: Array
    references: Array
    places: Array

    def select(self, samples: Array, references: Array) -> NearestDistances:
        """Return the distances of some images, by masks (N,) and (M,)."""
        places = self.places[np.concatenate([samples, references])]
        return NearestDistances(self.samples[samples], self.references[references], places)


def find_nearest(
    samples: Array,
    held_out: Array,
    training: Array,
    order: Array,
    alone: int = 0,
    see: Callable[[Array], Array] = lambda rows: rows,
) -> Work[NearestDistances]:
    """Find the nearest of the training rows in `order` to each sample and each reference.

    References are the held-out rows and the first `alone` rows of `order`. For a reference from
    `order`, identical rows do not count, and its distance is infinite if all rows are identical.

    Distances are root mean squared differences, and places are row indices of `training`, which
    mean nothing at an infinite distance. Rows of
    any shape and type are compared block by block in float64, which represents 8-bit pixels
    exactly. Grey images are repeated to three channels if the others are in color.

    Args:
        see: a function from rows to the values to compare.
    """
    channels = max(x.shape[1] for x in (samples, training)) if training.ndim > 2 else None
    width = _flatten_rows(see(training[order[:1]]), channels).shape[1]
    queries = [(side[i], -1.0) for side in (samples, held_out) for i in blocks(len(side), width)]
    queries += [(training[order[i]], SAME) for i in blocks(alone, width)]
    closest: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(queries)
    for j in blocks(len(order), width):
        rows = _flatten_rows(see(training[order[j]]), channels)
        for q, (side, limit) in enumerate(queries):
            squares = squared_distances(_flatten_rows(see(side), channels), rows)
            squares[squares <= limit * rows.shape[1]] = torch.inf
            closest[q] = merge(closest[q], squares, j.start, 1)
        yield Progress("finding the nearest training samples", j.stop, len(order))
    nearest = torch.cat([pair[0][:, 0] for pair in closest if pair is not None]).numpy()
    places = torch.cat([pair[1][:, 0] for pair in closest if pair is not None]).numpy()
    n, distances = len(samples), np.sqrt(nearest / width)
    return NearestDistances(distances[:n], distances[n:], order[places])


def add_candidates(
    near: NearestDistances,
    queries: Array,
    rows: Array,
    candidates: Array,
    places: Array,
    alone: int = 0,
) -> NearestDistances:
    """Compare some samples and references with one more training row each.

    Args:
        near: the distances so far.
        queries: the rows of all samples and references, (N + M, d).
        rows: the indices of the queries with a candidate, (K,).
        candidates, places: the training row (K, d) and its index, for each of them.
        alone: the number of references that are training rows, the last of the queries. As in
            `find_nearest`, identical rows do not count for them.
    """
    distances, nearest = np.concatenate([near.samples, near.references]), near.places.copy()
    squares = np.square(np.subtract(queries[rows], candidates, dtype=np.float64)).mean(1)
    squares[(rows >= len(queries) - alone) & (squares <= SAME)] = np.inf
    closer = np.sqrt(squares) < distances[rows]
    distances[rows[closer]] = np.sqrt(squares[closer])
    nearest[rows[closer]] = places[closer]
    n = len(near.samples)
    return NearestDistances(distances[:n], distances[n:], nearest)


def _flatten_rows(rows: Array, channels: int | None) -> torch.Tensor:
    """Return float64 rows (N, d)."""
    if channels is not None:
        rows = np.broadcast_to(rows, (len(rows), channels, *rows.shape[2:]))
    return torch.from_numpy(rows.reshape(len(rows), -1).astype(np.float64))
