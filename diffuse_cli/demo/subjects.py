"""The sample that `noise-demo` begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli import files, pictures
from diffuse_cli.config import DemoConfig
from diffuse_cli.core.space import Space
from diffuse_cli.errors import translating
from diffuse_cli.events import Notice, Work
from diffuse_cli.media import Array, Asked, by_extension, checked_size, like, prepare, settled

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
        values = _channels_first(pictures.shrunk(pictures.image(self.values), side))
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
        from diffuse_cli.media._decoding import read_image

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
    if medium == "image":
        return (yield from _image(config, space, fit))
    from diffuse_cli.data.measuring import measured
    from diffuse_cli.media import MEDIA
    from diffuse_cli.tasks.inputs import read_one

    prepare(medium)
    asked = Asked(**like(space), fit=fit or "crop") if space else Asked(size=size)
    path = Path(config.image)
    asked, _ = settled(medium, asked, (path.read_bytes() for path in [path] if path.is_file()))
    found = read_one(config.image, medium, asked)
    values = np.array(found.values)
    if space is None:
        space = replace(MEDIA[medium].space(values[None]), layout=found.layout, rate=asked.rate)
        if space.levels is None:
            name = Path(config.image).name
            space = measured(space, values[None], np.zeros(1, np.int64), [name])
    return Subject(values, space)


def _image(config: DemoConfig, space: Space | None, fit: str | None) -> Work[Subject]:
    from PIL import ImageColor

    from diffuse_cli.media import image
    from diffuse_cli.media._decoding import read_image
    from diffuse_cli.media._pixels import fitted

    picture, remarks = read_image(config.image, config.background)
    yield from (Notice(f"{files.show(config.image)}: {text}", warning=True) for text in remarks)
    size, background = config.size, ImageColor.getrgb(config.background)[:3]
    if space is not None:
        picture = fitted(picture, space.size, fit or "crop", background)
        picture = picture.convert(image.MODES[space.channels])
    elif size:
        picture = fitted(picture, size, config.fit or "crop", background)
    else:
        picture = pictures.shrunk(picture, OWN_SIDE)
    values = _channels_first(picture)
    return Subject(values, space or image.space(values[None]))


def _channels_first(picture: Any) -> Array:
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
