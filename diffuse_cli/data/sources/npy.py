"""An array in a file as a data set: each row of its first axis is a sample, as in `in_memory`.

A .npy file is mapped, so that it may be larger than memory. The only array of a .npz file is read
into memory, except a batch of images, which has its own source.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from diffuse_cli.data.sources import base, npz_batch
from diffuse_cli.data.sources.in_memory import encode_sample
from diffuse_cli.media import Array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array import read_array
from diffuse_cli.system import DataError, raise_if_full, shorten, show


class NpyRows(base.Source):
    """Rows of an array, named after their indices."""

    is_sample = True

    @staticmethod
    def recognizes(path: Path) -> bool:
        extension = base.extension_of(path.name)
        if extension == ".npz" and base.is_file(path) and not npz_batch.NpzBatch.recognizes(path):
            with contextlib.suppress(*npz_batch.NOT_ONE), zipfile.ZipFile(path) as archive:
                return len(archive.namelist()) == 1
        return extension == ".npy" and base.is_file(path)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._values = _open_array(path)
        self._bytes = path.stat().st_size

    def entries(self) -> Iterator[base.Entry]:
        first = encode_sample(self._values[0])
        for k in range(len(self._values)):
            yield base.Entry(f"{k:09d}{first.suffix}", len(first.data), str(k))

    def read(self, entry: base.Entry) -> bytes:
        if self.path.stat().st_size < self._bytes:  # reading past the end would raise SIGBUS
            raise reasons.Unusable(reasons.CHANGED)
        return encode_sample(self._values[int(entry.key)]).data


def _open_array(path: Path) -> Array:
    """Return the array of a .npy file, mapped, or of a .npz file, unpacked.

    Raises:
        DataError: there is no usable array, it is too large, or its rows cannot be samples.
    """
    if base.extension_of(path.name) == ".npy":
        values = _map_array(path)
    else:
        hint = "Save it with numpy.save as a .npy file"
        with reasons.read_required_file(path, "array", hint) as data:
            values = read_array(data)
    if values.ndim < 2 or values.size == 0:
        shape = " x ".join(map(str, values.shape)) or "one number"
        raise DataError(
            f"{show(path)} is an array of {shape}, not of samples",
            "Its first axis counts samples: N x H x W, N x C x H x W or N x H x W x C",
            code="data_unsupported",
            path=path,
        )
    return values


def _map_array(path: Path) -> Array:
    try:
        with np.errstate(over="ignore"):  # a damaged header can name a huge shape
            return open_memmap(path, mode="r")
    except Exception as error:  # the header is text of any kind
        raise_if_full(error)
        reason = getattr(error, "strerror", None) or shorten(error)
        text = f"cannot read {show(path)}: {reason}"
        raise DataError(text, code="data_unreadable", path=path) from error


SOURCE = NpyRows
