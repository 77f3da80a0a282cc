"""Groups of equal or similar images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffuse_cli.data import Samples
from diffuse_cli.data.summary import NAMED
from diffuse_cli.media import Array


@dataclass(frozen=True)
class Group:
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
    first: tuple[Group, ...]


def exact_roots(images: Samples) -> Array:
    """For each image the first with its digest."""
    words = np.ascontiguousarray(images.digests).view(np.uint64)
    _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def count_copies(images: Samples, roots: Array, chosen: Array) -> Copies:
    """The groups among the `chosen` images; `roots` has, for each, the index in `chosen` of the
    first of its group."""
    sizes = np.bincount(roots, minlength=len(chosen))
    found = np.flatnonzero(sizes > 1)
    members = np.flatnonzero(sizes[roots] > 1)
    members = members[np.argsort(roots[members], kind="stable")]
    parts = np.split(chosen[members], np.cumsum(sizes[found])[:-1])
    held_out, labels = images.held_out, images.labels
    ranked = sorted(range(len(found)), key=lambda i: -len(parts[i]))[:NAMED]
    return Copies(
        groups=len(found),
        surplus=len(members) - len(found),
        across_classes=sum(len(np.unique(labels[part])) > 1 for part in parts),
        across_split=sum(int(held_out[part].sum()) for part in parts if not held_out[part].all()),
        first=tuple(
            Group(len(parts[i]), tuple(images.names[k] for k in parts[i][:NAMED])) for i in ranked
        ),
    )
