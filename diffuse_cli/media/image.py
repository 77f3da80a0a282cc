"""Pictures of 8 bits per channel, grey or RGB, with transparency on a background."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from xxhash import xxh3_128_digest

from diffuse_cli import pictures
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.space import Space
from diffuse_cli.media import FITS as FITS
from diffuse_cli.media import Array, Asked, Read
from diffuse_cli.media._advice import ADVICE as ADVICE
from diffuse_cli.media._decoding import decoded
from diffuse_cli.media._headers import EXTENSIONS as EXTENSIONS
from diffuse_cli.media._headers import silence_pillow
from diffuse_cli.media._pixels import channels_first, digest, digest_of, fitted, to_pixels

prepare = silence_pillow
SUFFIX = ".png"
ONE, MANY = "image", "images"
KEPT_SIDE = 64
MODES = {1: "L", 3: "RGB"}
KINDS = {1: "grey", 3: "colour"}
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
LOW_HIGH, POINTS = ("dark", "bright"), "pixels"
MIXED = True


def read(data: bytes, asked: Asked) -> Read:
    """The first frame, upright and opaque, in sRGB, fitted to the size asked for."""
    found = decoded(data, asked.background, asked.shared)
    image, to_srgb = found.image, found.to_srgb
    wanted = MODES[asked.channels] if asked.channels is not None else _mode(image, asked)

    def finished(part: Image.Image) -> Image.Image:
        part = to_srgb(part) if to_srgb else part
        return part if part.mode == wanted else part.convert(wanted)

    done = image if to_srgb else finished(image)
    size = asked.size
    if size is None and max(image.size) > KEPT_SIDE:
        size = (KEPT_SIDE, KEPT_SIDE)
    if size is None:
        done = finished(done)
    else:
        done = fitted(done, size, asked.fit, asked.background, finished)
    values = np.asarray(done)
    name = digest(values) if done is image else digest_of(image)
    if to_srgb:  # equal numbers are other colours under another profile
        name = xxh3_128_digest(name + found.profile)
    channels = len(image.getbands())
    return Read(channels_first(values), name, found.mode, image.size, channels, found.remarks)


def _mode(image: Image.Image, asked: Asked) -> str:
    """Grey stays grey unless it is padded in a colour."""
    coloured = asked.fit == "pad" and len(set(asked.background)) > 1
    return "L" if image.mode == "L" and not coloured else "RGB"


def fit(values: Array, asked: Asked) -> Array:
    """As `read` fits an image."""
    assert asked.size is not None
    return to_pixels(fitted(pictures.image(values), asked.size, asked.fit, asked.background))


def space(samples: Array) -> Space:
    """256 levels."""
    channels, *size = samples.shape[1:]
    return Space(channels=int(channels), size=tuple(map(int, size)), medium="image")


def check(space: Space) -> None:
    """Two dimensions of 256 levels."""
    if space.dims != 2 or space.levels != 256:
        raise InvalidArgument("an image has height and width, and 256 levels")


def encode(sample: Array, space: Space) -> bytes:
    """A PNG without metadata."""
    return pictures.png(sample)


def look(samples: Array, space: Space) -> npt.NDArray[np.uint8]:
    """The images, or their first three channels or one."""
    channels = samples.shape[1]
    return samples if channels in MODES else samples[:, : 3 if channels > 3 else 1]
