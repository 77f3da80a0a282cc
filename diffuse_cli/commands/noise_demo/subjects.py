"""The sample that `noise-demo` begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.config import DemoConfig
from diffuse_cli.core.space import Space
from diffuse_cli.media import (
    Array,
    Asked,
    by_extension,
    checked_size,
    figures,
    like,
    prepare,
    settled,
)
from diffuse_cli.system import files
from diffuse_cli.system.errors import translating
from diffuse_cli.system.events import Notice, Work

WHITE = "white"
"""The background where none is asked for."""

OWN_SIDE = 256
"""Larger images are scaled down to this, without --size."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A sample as stored, (C, *size), and its space."""

    values: Array
    space: Space

    def shrunk(self, side: int) -> Subject:
        """An image of at most so many pixels a side; anything else as it is."""
        if self.space.medium != "image":
            return self
        values = _channels_first(figures.shrunk(figures.image(self.values), side))
        return replace(self, values=values, space=replace(self.space, size=values.shape[1:]))


def medium_of(path: str, space: Space | None) -> str:
    """What a file holds: what a model draws, or what its extension says."""
    usual = by_extension().get(Path(path).suffix.lower(), "image")
    return usual if space is None else space.medium


def check_there(path: str) -> None:
    """Refuse an image that cannot be read, before a model is.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if medium_of(path, None) == "image":
        from diffuse_cli.media.image.decoding import read_image

        read_image(path)


def read(config: DemoConfig, space: Space | None = None, fit: str | None = None) -> Work[Subject]:
    """The sample, at the size and of the numbers of a model, or its own.

    Raises:
        DataError: it is missing or cannot be read.
        UsageError: a size of another number of sides.
    """
    medium = medium_of(config.image, space)
    with translating():
        size = checked_size(medium, config.size)
    if medium == "image" and space is None:
        return (yield from _own_image(config))
    from diffuse_cli.data.samples import limited, measured
    from diffuse_cli.media import MEDIA
    from diffuse_cli.sampling.tasks.task_inputs import read_one, rgb

    prepare(medium)
    own: Mapping[str, Any] = like(space) if space else {"size": size}
    asked = Asked(**own, fit=fit or "crop", background=rgb(config.background or WHITE))
    path = Path(config.image)
    asked, _ = settled(medium, asked, (path.read_bytes() for path in [path] if path.is_file()))
    found = read_one(config.image, medium, asked)
    shown = files.show(config.image)
    yield from (Notice(f"{shown}: {text}", warning=True) for text in found.remarks)
    values = np.array(found.values)
    if space is None:
        space = replace(MEDIA[medium].space(values[None]), layout=found.layout, rate=asked.rate)
        if space.levels is None:
            name = Path(config.image).name
            space = measured(space, values[None], np.zeros(1, np.int64), [name])
        space = limited(space, values[None])
    return Subject(values, space)


def _own_image(config: DemoConfig) -> Work[Subject]:
    """An image at the size asked for, or its own, in 8 bits."""
    from diffuse_cli.media import image
    from diffuse_cli.media.image.decoding import read_image
    from diffuse_cli.media.image.planes import fit_image
    from diffuse_cli.sampling.tasks.task_inputs import rgb

    background = config.background or WHITE
    picture, remarks = read_image(config.image, background)
    yield from (Notice(f"{files.show(config.image)}: {text}", warning=True) for text in remarks)
    if config.size:
        picture = fit_image(picture, config.size, config.fit or "crop", rgb(background))
    else:
        picture = figures.shrunk(picture, OWN_SIDE)
    values = _channels_first(picture)
    return Subject(values, image.space(values[None]))


def _channels_first(picture: Any) -> Array:
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
