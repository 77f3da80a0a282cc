"""A .npy file as a data set: each row of its first axis is a sample, encoded as in `in_memory`.

The file is mapped, so that it may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from diffuse_cli.data.sources.entries import Entry, Source, extension_of, is_file
from diffuse_cli.data.sources.in_memory import encode_sample
from diffuse_cli.media import Array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import shorten, show
from diffuse_cli.system.memory import raise_if_full


class NpyRows(Source):
    """Rows of an array, named after their indices."""

    is_sample = True

    @staticmethod
    def recognizes(path: Path) -> bool:
        return extension_of(path.name) == ".npy" and is_file(path)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._values = _map_array(path)
        self._bytes = path.stat().st_size

    def entries(self) -> Iterator[Entry]:
        first = encode_sample(self._values[0])
        for k in range(len(self._values)):
            yield Entry(f"{k:09d}{first.suffix}", len(first.data), str(k))

    def read(self, entry: Entry) -> bytes:
        if self.path.stat().st_size < self._bytes:  # reading past the end would raise SIGBUS
            raise Unusable(reasons.CHANGED)
        return encode_sample(self._values[int(entry.key)]).data

    def shapes(self) -> Collection[tuple[int, ...]]:
        return [self._values.shape[1:]]


def _map_array(path: Path) -> Array:
    """Return the array of a file, mapped.

    Raises:
        DataError: there is no array, or its rows cannot be samples.
    """
    try:
        with np.errstate(over="ignore"):  # a damaged header can name a huge shape
            values: Array = open_memmap(path, mode="r")
    except Exception as error:  # the header is text of any kind
        raise_if_full(error)
        reason = getattr(error, "strerror", None) or shorten(error)
        raise DataError(f"cannot read {show(path)}: {reason}") from error
    shape = " x ".join(map(str, values.shape))
    if values.ndim < 2 or values.size == 0:
        raise DataError(
            f"{show(path)} is an array of {shape or 'one number'}, not of samples",
            "Its first axis counts samples: N x H x W, N x C x H x W or N x H x W x C",
        )
    return values


SOURCE = NpyRows
