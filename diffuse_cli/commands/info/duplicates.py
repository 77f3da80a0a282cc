"""Near duplicates: copies that were resized, compressed or brightened.

Each image has a hash of 63 bits, the signs of its lowest frequencies. Images whose hashes differ in
a few bits are compared by the frequencies. The pass that hashes images also measures their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffuse_cli.core.data_gaussian import cosines
from diffuse_cli.data import Dataset
from diffuse_cli.data.summary import NAMED
from diffuse_cli.media import Array
from diffuse_cli.system import Progress, Work

TASK = "comparing images"

MEASURING = "measuring images"

BLANK = 2.0
"""Images that vary by less, in levels of 255 and without the finest detail, are not compared."""

HASHED = 8
"""The hash has a bit for each of the lowest 8x8 DCT frequencies of the grey image except the mean
(pHash): unlike differences of neighbors, no bit is lost where an image is empty."""

COMPARED = 16
"""Frequencies each way by which candidates are compared. Copies lose the finer ones."""

MARGIN = 0.05
"""A bit is set above this part of the frequencies' root mean square. At 0, noise would decide the
exact zeros of a symmetric image."""

BANDS = 5
DISTANCE = BANDS - 1
"""Most bits in which hashes of near duplicates differ: then one of the five bands of bits is equal,
and only images that share a band are compared. Of clip art at 64x64 and garments at 28x28, 98 % of
copies are within it: JPEG of quality 75, or scaled to 3/4 and back."""

ALIKE = 0.995
"""Least correlation of near duplicates. It finds 93 % of the clip art's JPEG copies and 99 % of the
garments', all scaled copies of clip art and 78 % of garments. Of the 1.8 billion pairs in
Fashion-MNIST it finds 159, which look the same. Another 825 are between 0.99 and 0.995, some of
them different garments of one cut."""

REACH, CANDIDATES = 2048, 16
"""In each band, the most neighbors (in the order of hashes) of an image whose hashes are compared,
and the mean number whose frequencies are. This bounds the time if very many images share a band or
a hash, such as the frames of a fixed camera. Some copies are missed then."""

PAIRS = 2**13
"""Candidates in a batch."""

BLOCK = 2**22
"""Pixel values in a batch."""

_MASKS = [np.uint64(sum(1 << bit for bit in range(b, 64, BANDS))) for b in range(BANDS)]
_ONES = np.array([bin(i).count("1") for i in range(2**16)], np.uint8)


def blocks(pixels: Array, total: int | None = None) -> Iterator[slice]:
    """Yield the images, or so many such images, in batches of bounded size."""
    count = max(1, BLOCK // max(1, math.prod(pixels.shape[1:])))
    for start in range(0, len(pixels) if total is None else total, count):
        yield slice(start, start + count)


def can_compare(pixels: Array) -> bool:
    """Whether the images are large enough for the hash."""
    return bool(min(pixels.shape[2:]) >= HASHED)


def frequencies(pixels: Array) -> Array:
    """Return the lowest DCT coefficients, float32 (N, C, h, w), of images uint8 (N, C, H, W),
    without the mean."""
    sides = (cosines(side, min(side, COMPARED)) for side in pixels.shape[2:])
    rows, columns = (side.astype(np.float32) for side in sides)
    coefficients: Array = rows @ pixels.astype(np.float32) @ columns.T
    coefficients[:, :, 0, 0] = 0
    return coefficients


def hashes(coefficients: Array) -> Array:
    """Return the hash of each image, uint64 (N,), from its frequencies."""
    low = coefficients.mean(axis=1)[:, :HASHED, :HASHED].reshape(len(coefficients), -1)
    scale = np.sqrt(np.square(low).mean(axis=1, keepdims=True))
    bits = np.packbits(low > MARGIN * scale, axis=1)
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def group_similar(pixels: Array, hashed: Array, chosen: Array) -> Work[Array]:
    """For each of the `chosen` images the index in `chosen` of the first of its group.

    `hashed` are the hashes of all images. An image like any of a group belongs to the group.
    """
    roots = np.arange(len(chosen))
    waiting: list[Array] = []
    yield Progress(TASK, 0, BANDS)
    for band in range(BANDS):
        for pairs in _candidates(hashed[chosen], band):
            waiting.append(pairs)
            if sum(map(len, waiting)) >= PAIRS:
                roots = _join_pairs(roots, pixels, chosen, np.concatenate(waiting))
                waiting.clear()
        yield Progress(TASK, band + 1, BANDS)
    return _join_pairs(roots, pixels, chosen, np.concatenate(waiting)) if waiting else roots


def _candidates(hashed: Array, band: int) -> Iterator[Array]:
    """Pairs (K, 2) within the distance that share this band of bits and no earlier one."""
    keys = hashed & _MASKS[band]
    order = np.lexsort((hashed, keys))
    keys, ordered = keys[order], hashed[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(starts, len(keys)))
    ends = np.repeat(starts + sizes, sizes)
    places = np.arange(len(keys))
    budget = CANDIDATES * len(keys)
    for step in range(1, REACH + 1):
        places = places[places + step < ends[places]]
        if not len(places) or budget <= 0:
            return
        differing = ordered[places] ^ ordered[places + step]
        near = _ONES[differing.view(np.uint16)].reshape(-1, 4).sum(axis=1) <= DISTANCE
        for earlier in _MASKS[:band]:
            near &= (differing & earlier) != 0
        hits = places[near]
        budget -= len(hits)
        if len(hits):
            yield np.stack([order[hits], order[hits + step]], axis=1)


def _join_pairs(roots: Array, pixels: Array, chosen: Array, pairs: Array) -> Array:
    """`roots` after joining the groups of similar pairs."""
    pairs = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
    for part in np.array_split(pairs, len(pairs) // PAIRS + 1):
        if len(part):
            roots = _unite_groups(roots, part[_find_similar(pixels, chosen[part])])
    return roots


def _find_similar(pixels: Array, pairs: Array) -> Array:
    """Return whether each pair of images correlates in the lower frequencies of all channels."""
    indices, inverse = np.unique(pairs, return_inverse=True)
    parts = [frequencies(pixels[indices[block]]) for block in blocks(pixels, len(indices))]
    vectors = np.concatenate(parts).reshape(len(indices), -1)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    first, second = inverse.reshape(pairs.shape).T
    correlation: Array = np.einsum("ij,ij->i", vectors[first], vectors[second])
    return correlation >= ALIKE


def _unite_groups(roots: Array, pairs: Array) -> Array:
    """Return the roots after joining every pair's groups under the smaller root."""
    roots = roots.copy()
    while True:
        ends = np.sort(roots[pairs], axis=1)
        if (ends[:, 0] == ends[:, 1]).all():
            return roots
        np.minimum.at(roots, ends[:, 1], ends[:, 0])
        while (roots[roots] != roots).any():
            roots = roots[roots]


# -- copies ---------------------------------------------------------------------------------------

# Groups of equal or similar images.


@dataclass(frozen=True)
class CopyGroup:
    """The size of a group, and the names of its first images."""

    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Copies:
    """Images that are there more than once.

    Attributes:
        groups: the number of groups of two or more.
        surplus: images beyond the first of each group.
        across_classes: groups in more than one class.
        across_split: held-out images in a group with a training image.
        first: the largest groups.
    """

    groups: int
    surplus: int
    across_classes: int
    across_split: int
    first: tuple[CopyGroup, ...]


def count_copies(images: Dataset, roots: Array, chosen: Array) -> Copies:
    """Return the groups among the `chosen` images; `roots` has, for each, the index in `chosen` of
    the first of its group."""
    sizes = np.bincount(roots, minlength=len(chosen))
    groups = np.flatnonzero(sizes > 1)
    members = np.flatnonzero(sizes[roots] > 1)
    members = members[np.argsort(roots[members], kind="stable")]
    parts = np.split(chosen[members], np.cumsum(sizes[groups])[:-1])
    held_out, labels, names = images.held_out, images.labels, images.names
    ranked = sorted(parts[: len(groups)], key=lambda part: -len(part))[:NAMED]
    return Copies(
        groups=len(groups),
        surplus=len(members) - len(groups),
        across_classes=sum(len(np.unique(labels[part])) > 1 for part in parts),
        across_split=sum(int(held_out[part].sum()) for part in parts if not held_out[part].all()),
        first=tuple(CopyGroup(len(part), tuple(names[k] for k in part[:NAMED])) for part in ranked),
    )


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each channel's values."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def rescale(self, low: int, high: int) -> Spread:
        """Return the same of values in low ... high in [-1, 1], the network's range."""
        half = (high - low) / 2
        mean = tuple((m - low) / half - 1 for m in self.mean)
        return Spread(mean, tuple(s / half for s in self.std))


def measure_images(images: Dataset, ends: tuple[int, int]) -> Work[tuple[Spread, Array, Array]]:
    """Return the spread of the values, each image's hash and whether it is blank, in one pass."""
    count, axes = len(images), (0, *range(2, images.stored.ndim))
    totals, squares = np.zeros((2, images.stored.shape[1]), np.uint64)
    hashed, blank = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
    comparable = can_compare(images.stored)
    faint = BLANK * (ends[1] - ends[0]) / 255
    yield Progress(MEASURING, 0, count)
    for block in blocks(images.stored):
        part = images.stored[block]
        totals += part.sum(axes, dtype=np.uint64)
        squares += np.square(part, dtype=np.uint32).sum(axes, dtype=np.uint64)
        coefficients = frequencies(part)
        blank[block] = np.square(coefficients).sum((1, 2, 3)) < faint**2 * math.prod(part.shape[1:])
        if comparable:
            hashed[block] = hashes(coefficients)
        yield Progress(MEASURING, min(block.stop, count), count)
    values = count * math.prod(images.stored.shape[2:])
    sums = list(zip(totals.tolist(), squares.tolist(), strict=True))  # exact, as whole numbers
    spread = Spread(
        mean=tuple(total / values for total, _ in sums),
        std=tuple(math.sqrt(square * values - total**2) / values for total, square in sums),
    )
    return spread, hashed, blank
