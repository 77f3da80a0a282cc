"""Pixels of 16 bits. Pillow has them of grey alone; colour comes from libpng, in torchvision."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.image.image_metadata import failing_as
from diffuse_cli.media.image.planes import SIGNATURE, Planes

_BITS_PER_SAMPLE = 258


_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def may_be_deep(data: bytes) -> bool:
    """Whether `is_deep` may be true of a file, by its first bytes."""
    return data[24:25] == b"\x10" if data.startswith(SIGNATURE) else data.startswith(_TIFFS)


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether `planes` reads the 16 bits of an image whose header is open."""
    return image.mode.startswith("I") or (image.format == "PNG" and data[24:25] == b"\x10")


def planes(image: Image.Image, data: bytes) -> Planes:
    """Levels of 16 bits (C, H, W), with a straight alpha last if C is 2 or 4.

    Numbers of fewer bits than 16 are scaled to 16.

    Raises:
        Unusable: damaged, or not of 16 bits.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        with failing_as(reasons.CORRUPT):
            image.load()
        values: npt.NDArray[Any] = np.asarray(image)[None]
        top = _top(image)
        if values.min() < 0 or values.max() > top:
            raise Unusable(reasons.PIXELS)
        opaque = None if key is None else values != key
        found = values.astype(np.uint16) if top == 65_535 else _widened(values, top)
    else:
        with failing_as(reasons.CORRUPT):
            found = _decoded(data)
        opaque = None
        if isinstance(key, tuple) and len(key) == len(found):
            opaque = (found != np.reshape(key, (-1, 1, 1))).any(0, keepdims=True)
    if opaque is None:
        return found
    return np.concatenate([found, opaque.astype(np.uint16) * np.uint16(65_535)])


def _top(image: Image.Image) -> int:
    """The highest number of grey of up to 16 bits."""
    bits = 16
    if tags := getattr(image, "tag_v2", None):
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if bits > 16:
        raise Unusable(reasons.PIXELS)
    return int(2**bits - 1)


def _widened(values: Planes, top: int) -> Planes:
    """Numbers 0 ... top over 16 bits, rounded to nearest."""
    table = ((np.arange(top + 1) * (2 * 65_535) + top) // (2 * top)).astype(np.uint16)
    return table[values]


def _decoded(data: bytes) -> Planes:
    import torch
    from torchvision.io import ImageReadMode, decode_png

    bare = SIGNATURE + b"".join(_pixel_chunks(data))
    tensor = torch.frombuffer(bytearray(bare), dtype=torch.uint8)
    # uint16 of torch can do little, and int32 holds it.
    found: Planes = decode_png(tensor, ImageReadMode.UNCHANGED).int().numpy().astype(np.uint16)
    return found


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks with the header and the pixels: of others libpng warns on stderr."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        whole = data[at : at + 12 + length]
        if whole[4:8] in (b"IHDR", b"IDAT", b"IEND"):
            yield whole
        at += 12 + length
