"""Many images in one array: a .npz file with uint8 (N, H, W, C) as `arr_0`.

The evaluation suite of guided-diffusion (github.com/openai/guided-diffusion, evaluations/README.md)
reads and publishes samples in this format. `arr_1` holds labels.
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

from diffuse_cli.data.sources.base import HINT, Entry, Source, is_file
from diffuse_cli.data.sources.in_memory import encode_image
from diffuse_cli.media import Array
from diffuse_cli.media.array import HEADERS
from diffuse_cli.system import DataError, file_types, show

IMAGES, LABELS = "arr_0.npy", "arr_1.npy"
OTHERS = {LABELS, "manifest.json"}
"""Other members that the file may have."""

NOT_ONE = (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""Errors from reading a file of another kind."""


class NpzBatch(Source):
    """Images of a batch file, each read as a PNG file. They stay on disk.

    Raises:
        ValueError: the array is of another kind, or the file is truncated.
    """

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether the file is a zip of the array of images and at most the `OTHERS`."""
        if not is_file(path) or file_types.recognize_path(path) != file_types.ZIP:
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                _read_array_header(archive)
        except NOT_ONE:
            return False
        return True

    @classmethod
    def open(cls, path: Path) -> NpzBatch:
        """Open a file.

        Raises:
            DataError: the file is not an .npz of images.
        """
        try:
            return cls(path)
        except NOT_ONE as error:
            text = f"cannot read the images in {show(path)}: {error}"
            raise DataError(text, HINT, code="data_unreadable", path=path) from error

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with zipfile.ZipFile(path) as archive:
            shape, start = _read_array_header(archive)
            self._file = _unpack_array(archive, path)
        file, at = self._file
        self.images: Array = np.memmap(file, np.uint8, "r", at + start, shape)

    def entries(self) -> Iterator[Entry]:
        """Yield an entry for each image."""
        size = self.images[0].nbytes
        for k in range(len(self.images)):
            yield Entry(f"{k:05d}.png", size, str(k))

    def read(self, entry: Entry) -> bytes:
        """Return an image as a PNG file without compression."""
        pixels = self.images[int(entry.key)]
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        return encode_image(image, compress_level=0).data

    def close(self) -> None:
        """Close the file. No image may be used afterwards."""
        self._file[0].close()


def _read_array_header(archive: zipfile.ZipFile) -> tuple[tuple[int, ...], int]:
    """Return the shape of the array of images, and the offset of its values in the member."""
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


def _unpack_array(archive: zipfile.ZipFile, path: Path) -> tuple[IO[bytes], int]:
    """Return a file that holds the array's .npy, and its offset there.

    The file is the archive itself, or a temporary file if the array is compressed.
    """
    info = archive.getinfo(IMAGES)
    if info.compress_type == zipfile.ZIP_STORED:
        file = path.open("rb")
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        return file, info.header_offset + 30 + name + extra
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  stays open until the source is closed
    with archive.open(info) as member:
        shutil.copyfileobj(member, unpacked)
    unpacked.flush()
    return unpacked, 0


SOURCE = NpzBatch
