"""A contact sheet: images spread evenly over a set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffuse_cli.core.space import Space
from diffuse_cli.data import Samples
from diffuse_cli.data.samples import limited
from diffuse_cli.media import MEDIA, Array, figures
from diffuse_cli.system.events import Notice, Work

SHOWN = 64
"""Most images on a sheet without classes."""

COLUMNS, ROWS = 10, 50
"""Most images of a class, and classes, on a sheet."""

SIDE = 128
"""Larger images are scaled down to this."""


def draw(images: Samples) -> Work[Image.Image]:
    """The sheet; with classes, a row for each and for images outside them.

    Yields a `Notice` if there are more classes than rows.
    """
    space = limited(images.unmeasured, images.stored)
    if not images.class_names:
        return figures.grid(_small(images, space, _spread(np.arange(len(images)), SHOWN)))
    labels = list(range(len(images.class_names)))
    if (images.labels == -1).any():
        labels.append(-1)
    if len(labels) > ROWS:
        yield Notice(f"the contact sheet shows {ROWS} of {len(labels):,} classes")
    chosen = [labels[i] for i in _spread(np.arange(len(labels)), ROWS)]
    rows = [_spread(np.flatnonzero(images.labels == label), COLUMNS) for label in chosen]
    return figures.grid(_filled(images, space, rows), columns=max(map(len, rows)))


def _spread(indices: Array, most: int) -> Array:
    """At most `most` of the indices, evenly spaced from the first to the last."""
    if len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).round().astype(np.int64)]


def _filled(images: Samples, space: Space, rows: Sequence[Array]) -> Array:
    """The images of each row, with short rows filled up with white."""
    small = [_small(images, space, row) for row in rows]
    page = np.full((len(rows), max(map(len, rows)), *small[0].shape[1:]), 255, np.uint8)
    for i, row in enumerate(small):
        page[i, : len(row)] = row
    return page.reshape(-1, *page.shape[2:])


def _small(images: Samples, space: Space, chosen: Array) -> Array:
    """Images at the size on the sheet."""
    medium = MEDIA[space.medium]
    seen = (medium.look(images.stored[[k]], space)[0] for k in chosen)
    shrunk = (figures.shrunk(figures.image(each), SIDE) for each in seen)
    return np.stack([np.atleast_3d(np.asarray(each)).transpose(2, 0, 1) for each in shrunk])
