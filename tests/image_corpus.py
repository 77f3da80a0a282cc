from __future__ import annotations

import contextlib
import io
import signal
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from diffuse_cli.media.image.decoding import decode_image
from diffuse_cli.media.image.image_metadata import silence_pillow


def decode(data: bytes, background: str = "white") -> Image.Image:
    """The first frame of an image file, as L or RGB."""
    silence_pillow()
    return decode_image(data, ImageColor.getrgb(background)[:3]).as_srgb()


def noise(seed: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Image.Image:
    """A random image of `size` (width, height)."""
    bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    shape = (size[1], size[0], *bands)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(values: Any, **options: Any) -> bytes:
    """An array as a .npy file."""
    np.save(file := io.BytesIO(), values, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG made by hand; `rows` has a filter byte before each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


BOMB = png(50_000, 50_000, 8, 2, b"\0" * 100)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def contents(folder: Path | str) -> dict[str, bytes]:
    """What `fill` writes there: all files of a folder by their paths in it, hidden ones too."""
    paths = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def read(source: Path | str, **options: Any) -> Any:
    """The `Dataset` of a folder or file."""
    from diffuse_cli.data import read_images
    from diffuse_cli.system.events import finish

    return finish(read_images(source, **options))


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where the block waits for ever; what waits must do so in the main thread."""

    def fail(number: int, frame: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path
