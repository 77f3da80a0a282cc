"""Many samples as one picture: in rows of what they are told, or as they come out of the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.core.space import Space
from diffuse_cli.media import figures, looks
from diffuse_cli.sampling.conditioning import Condition

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    Array = npt.NDArray[Any]
    Frames = dict[int, list[Array]]

GIF_FRAMES = 60
"""Most frames of an animation."""


def arrange(drawn: Mapping[int, Array], space: Space, wanted: Condition | None) -> Image:
    """The grid of samples by index: nearly square, or a row for each class and each that is told
    otherwise."""
    order = sorted(drawn)
    shown = dict(zip(order, looks(space, np.stack([drawn[i] for i in order])), strict=True))
    rows: dict[Any, list[Array]] = {}
    if wanted and (wanted.labels or wanted.rows):
        for i in range(max(len(wanted.labels), len(wanted.rows))):
            rows[wanted.label(i), wanted.row(i)] = []
        for i in order:
            rows[wanted.label(i), wanted.row(i)].append(shown[i])
    columns = max(map(len, rows.values()), default=0)
    if len(rows) < 2 or columns < 2:
        return figures.grid(np.stack(list(shown.values())))
    blank = np.full_like(shown[order[0]], 255)
    filled = [image for row in rows.values() for image in (*row, *[blank] * (columns - len(row)))]
    return figures.grid(np.stack(filled), columns)


def beside(drawn: Mapping[int, Array], space: Space, seen: Frames, turn: int) -> Image:
    """The grid of samples by index, each row after what its images are given.

    Args:
        seen: pictures of what image k is given, by k modulo `turn`.
    """
    order = sorted(drawn)
    shown = dict(zip(order, looks(space, np.stack([drawn[i] for i in order])), strict=True))
    rows: dict[int, list[Array]] = {}
    for i in order:
        rows.setdefault(i % turn, [*seen[i % turn]]).append(shown[i])
    return figures.rows(rows[k] for k in sorted(rows))


def animate(frames: Frames, space: Space) -> bytes:
    """The first images from noise to picture, in at most `GIF_FRAMES` frames."""
    order = sorted(frames)
    last = len(frames[order[0]]) - 1
    shown = sorted({round(last * k / (GIF_FRAMES - 1)) for k in range(GIF_FRAMES)})
    grids = [figures.grid(looks(space, np.stack([frames[i][k] for i in order]))) for k in shown]
    return figures.gif(grids, seconds=3.0, hold=2.0)
