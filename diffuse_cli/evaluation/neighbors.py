"""The nearest training image of each generated image and of references, and a page of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from diffuse_cli import pictures
from diffuse_cli.evaluation.images import Pixels
from diffuse_cli.events import Progress, Work
from diffuse_cli.metrics._nearest import blocks, merge, squared
from diffuse_cli.metrics.memorization import Nearest, usable

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]

PAIRS, COLUMNS = 24, 4
"""Pairs on the page, and side by side."""

SIDE, DPI = 112, 150
"""Dots of an image, and in an inch."""

TITLE = "Generated images (left) and their nearest training images (right)"
UNDER = "Distance, where 1 is the usual one of images that are no copies; 0 is a copy."


SAME = 1e-10
"""Mean squared differences up to this are those of one image: of its features, by rounding."""


def search(
    samples: Array, held_out: Array, training: Array, order: npt.NDArray[np.int64], alone: int = 0
) -> Work[Nearest]:
    """The nearest of training rows at the places `order` to each row of the other two.

    The first `alone` of them are references beside the held-out rows: to each the nearest that is
    not the same, and infinity where all are.

    Rows are of any shape and type, compared in float64, in which 8-bit pixels are exact; memory is
    that of a block of them. Grey ones are taken as colours among coloured ones.

    Returns:
        Root mean squared differences, and places among the rows of `training`.
    """
    channels = max(x.shape[1] for x in (samples, training)) if training.ndim == 4 else None
    queries = [(side[i], -1.0) for side in (samples, held_out) for i in blocks(len(side))]
    queries += [(training[order[i]], SAME) for i in blocks(alone)]
    kept: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(queries)
    for j in blocks(len(order)):
        rows = _flat(training[order[j]], channels)
        for q, (side, least) in enumerate(queries):
            found = squared(_flat(side, channels), rows)
            found[found <= least * rows.shape[1]] = torch.inf
            kept[q] = merge(kept[q], found, j.start, 1)
        yield Progress("nearest training images", j.stop, len(order))
    nearest = torch.cat([k[0][:, 0] for k in kept if k is not None]).numpy()
    places = torch.cat([k[1][:, 0] for k in kept if k is not None]).numpy()
    n, size = len(samples), _flat(samples[:1], channels).shape[1]
    distances = np.sqrt(nearest / size)
    return Nearest(distances[:n], distances[n:], order[places[:n]])


def _flat(rows: Array, channels: int | None) -> torch.Tensor:
    """Float64 rows (N, d)."""
    if channels is not None:
        rows = np.broadcast_to(rows, (len(rows), channels, *rows.shape[2:]))
    return torch.from_numpy(rows.reshape(len(rows), -1).astype(np.float64))


@dataclass(frozen=True)
class Pair:
    """A generated image and a training image.

    Attributes:
        ratio: their distance over the median distance of references from their nearest.
    """

    sample: int
    place: int
    space: str
    ratio: float


def worst(nearest: Mapping[str, Nearest], count: int) -> list[Pair]:
    """The samples that are nearest to training images, each in the space where it is nearer."""
    pairs: dict[int, Pair] = {}
    for space, found in nearest.items():
        usual = max(float(np.median(usable(found.references))), 1e-12)
        for i, distance in enumerate(found.samples.tolist()):
            pair = Pair(i, int(found.places[i]), space, distance / usual)
            pairs[i] = min(pairs.get(i, pair), pair, key=lambda p: p.ratio)
    return sorted(pairs.values(), key=lambda p: (p.ratio, p.sample))[:count]


def draw(nearest: Mapping[str, Nearest], samples: Pixels, training: Pixels) -> Image.Image:
    """A page of the worst pairs: a generated image, and its nearest training image beside it."""
    pairs = worst(nearest, PAIRS)
    shown = [[_sized(samples[p.sample]), _sized(training[p.place])] for p in pairs]
    side = max(max(image.shape[1:]) for pair in shown for image in pair) / DPI
    columns = min(COLUMNS, len(pairs))
    pitch_x, pitch_y = max(2 * side + 0.35, 1.6), side + 0.4
    rows = math.ceil(len(pairs) / columns)
    sheet = pictures.Sheet(max(0.6 + columns * pitch_x, 7.0), 1.25 + rows * pitch_y, DPI)
    wide = sheet.width - 0.8
    sheet.text(0.4, 0.4, TITLE, wide, fontsize=11, fontweight="bold")
    sheet.text(0.4, 0.65, UNDER, wide, fontsize=8.5, color=pictures.FAINT)
    for k, (pair, images) in enumerate(zip(pairs, shown, strict=True)):
        x, y = 0.4 + k % columns * pitch_x, 0.85 + k // columns * pitch_y
        for image in images:
            sheet.image(x, y, image)
            x += side + 0.05
        caption = f"image {pair.sample}: {pair.ratio:.2f} in {pair.space}"
        left = 0.4 + k % columns * pitch_x
        sheet.text(left, y + side + 0.15, caption, pitch_x - 0.15, fontsize=7.5)
    return sheet.render()


def _sized(image: Pixels) -> Pixels:
    """An image at about `SIDE` dots, whole multiples of its own where it is smaller."""
    zoom = max(1, SIDE // max(image.shape[1:]))
    picture = pictures.shrunk(pictures.image(image.repeat(zoom, 1).repeat(zoom, 2)), SIDE)
    dots = np.asarray(picture)
    return dots[None] if dots.ndim == 2 else np.ascontiguousarray(dots.transpose(2, 0, 1))
