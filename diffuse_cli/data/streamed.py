"""A stream of samples in the place of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.data.stream import Stream
from diffuse_cli.media import Array
from diffuse_cli.system.events import Work

if TYPE_CHECKING:
    from diffuse_cli.data.store import Kept

Indices = npt.NDArray[np.int64]


class Streamed:
    """The samples of a stream as an array (N, C, *size) that can be indexed along its first axis;
    a part of each, with `[..., slices]`.

    It is passed where an array of stored samples is, and never decodes more than it is asked for.
    """

    def __init__(self, stream: Stream, part: tuple[slice, ...] = ()) -> None:
        self.stream, self._part = stream, part
        self._of_each: Any = (..., *part)
        origin = stream.origin
        one = np.broadcast_to(np.zeros((), origin.dtype), origin.shape)
        self.shape: tuple[int, ...] = (len(origin.entries), *one[self._of_each].shape)
        self.dtype, self.ndim = origin.dtype, len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            if not key or key[0] is not Ellipsis or self._part:
                raise IndexError("a part is [..., slices]")
            return Streamed(self.stream, key[1:])
        if isinstance(key, (int, np.integer)):
            return self._rows(np.array([range(len(self))[key]]))[0]
        if isinstance(key, slice):
            return self._rows(np.arange(*key.indices(len(self))))
        rows = np.asarray(key)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        return self._rows(np.where(rows < 0, rows + len(self), rows))

    def _rows(self, rows: Indices) -> Array:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, values in enumerate(self.stream.look_up(rows)):
            found[place] = values[self._of_each]
        return found

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("a stream of samples is too large for an array")


def stream_of(stored: Any) -> Stream | None:
    """The stream behind stored samples, if they are not all in memory or a file."""
    return stored.stream if isinstance(stored, Streamed) else None


def stored_of(stream: Stream, kept: Kept, workers: int) -> Work[Any]:
    """The samples of a stream: what is kept, if that is all of them, or can be; else the stream."""
    count = len(stream.origin.entries)
    if (room := min(kept.room, count)) > len(stream.kept):
        yield from stream.filled(kept.again(), room, workers)
    if len(stream.kept) == count and not stream.holes:
        return stream.kept
    return Streamed(stream)
