"""Many images in one array: a .npz file with uint8 (N, H, W, C) as `arr_0`.

This is what the evaluation suite of guided-diffusion (github.com/openai/guided-diffusion,
evaluations/README.md) reads, and its published samples and references are; `arr_1` are labels.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from diffuse_cli.data.sources.entries import HINT, Entry, Source, is_file
from diffuse_cli.data.sources.in_memory import of_image
from diffuse_cli.media import Array
from diffuse_cli.media.array.npy_file import HEADERS
from diffuse_cli.system import file_types
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import show

IMAGES, LABELS = "arr_0.npy", "arr_1.npy"
OTHERS = {LABELS, "manifest.json"}
"""What else such a file may hold."""

_NOT_ONE = (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What reading another file may raise."""


class Batch(Source):
    """The images of such a file, as if each were a PNG file; they stay on the disk.

    Raises:
        ValueError: another array, or a file that is cut short.
    """

    @staticmethod
    def recognises(path: Path) -> bool:
        """A zip file with nothing but such an array, and what may lie beside it."""
        if not is_file(path) or file_types.kind_at(path) != file_types.ZIP:
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                _array_in(archive)
        except _NOT_ONE:
            return False
        return True

    @classmethod
    def open(cls, path: Path) -> Batch:
        try:
            return cls(path)
        except _NOT_ONE as error:
            raise DataError(f"cannot read the images in {show(path)}: {error}", HINT) from error

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with zipfile.ZipFile(path) as archive:
            shape, start = _array_in(archive)
            self._file = _unpacked(archive, path)
        file, at = self._file
        self.images: Array = np.memmap(file, np.uint8, "r", at + start, shape)

    def entries(self) -> Iterator[Entry]:
        """An entry for each image."""
        size = self.images[0].nbytes
        for k in range(len(self.images)):
            yield Entry(f"{k:05d}.png", size, str(k))

    def read(self, entry: Entry) -> bytes:
        """A PNG file without compression."""
        pixels = self.images[int(entry.key)]
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        return of_image(image, compress_level=0).data

    def close(self) -> None:
        """Close the file, once no image is used any more."""
        self._file[0].close()


def _array_in(archive: zipfile.ZipFile) -> tuple[tuple[int, ...], int]:
    """The shape of the array of images, and where its numbers begin."""
    names = {*archive.namelist()}
    if IMAGES not in names or not names <= {IMAGES, *OTHERS}:
        raise ValueError("no such array")
    with archive.open(IMAGES) as member:
        version = np.lib.format.read_magic(member)
        if version not in HEADERS:
            raise ValueError("another version")
        shape, by_columns, dtype = HEADERS[version](member)
        if by_columns or dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
            raise ValueError("another array")
        if min(shape) < 1:
            raise ValueError("no images")
        return shape, member.tell()


def _unpacked(archive: zipfile.ZipFile, path: Path) -> tuple[IO[bytes], int]:
    """A file with the array's, and where that begins: the archive itself, unless it is packed."""
    info = archive.getinfo(IMAGES)
    if info.compress_type == zipfile.ZIP_STORED:
        file = path.open("rb")
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        return file, info.header_offset + 30 + name + extra
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  it is read until the end
    with archive.open(info) as member:
        shutil.copyfileobj(member, unpacked)
    unpacked.flush()
    return unpacked, 0


SOURCE = Batch
