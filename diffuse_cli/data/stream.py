"""Samples that are decoded when they are looked up, for data sets that fit in no memory or disk."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.data.decoding_threads import (
    DecodedFile,
    DecodingTask,
    cores,
    decode_all,
    decode_files,
)
from diffuse_cli.data.samples import mask_held_out
from diffuse_cli.data.sources import Entry, open_source
from diffuse_cli.media import MEDIA, Array, Indices, ReadSettings
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system import DataError, show

REMEMBERED = 2**26
"""Bytes of recently used samples that stay in memory."""

TRIES = 1000
"""Number of unreadable samples in a row after which the whole source counts as gone."""

MOST_THREADS = 16
"""With more threads, training would wait for Python's lock."""


def lists_to_tuples(values: Iterable[Any]) -> list[Any]:
    """Return JSON values with tuples instead of lists."""
    return [tuple(value) if isinstance(value, list) else value for value in values]


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """Source and read settings of N samples.

    Attributes:
        source: the path of a folder, a zip file or another source.
        single: whether the source may be a single sample.
        entries: the entries of the N samples in the source.
        digests: uint8 (N, 16), hashes of the samples when they were listed.
        shape, dtype: the shape (C, *size) and type of each stored sample.
    """

    source: str
    medium: str
    settings: ReadSettings
    entries: Sequence[Entry]
    digests: npt.NDArray[np.uint8]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    single: bool = False


class Stream:
    """Thread-safe stream of the samples of an origin, the first of which may be kept.

    A sample that has changed since it was listed, or cannot be read any more, is a fault. The
    stream reports it once and never returns it.

    Args:
        kept_samples: (K, C, *size), the first K samples.
        holes: indices of kept samples that could not be read.
        workers: threads that decode ahead; None for one per core, shared with other processes.
    """

    def __init__(
        self,
        origin: StreamSource,
        kept_samples: Array,
        holes: Iterable[int] = (),
        workers: int | None = None,
        strict: bool = False,
    ) -> None:
        self.origin, self.workers, self.strict = origin, workers, strict
        self.kept_samples, self.holes = kept_samples, frozenset(holes)
        self._recent: OrderedDict[int, Array] = OrderedDict()
        self._ahead: dict[int, Array] = {}
        self._lock = threading.Lock()
        self._faulty_rows: set[int] = set()
        self._faults: list[tuple[int, str]] = []
        self._last = 0, reasons.VANISHED
        self._pool: ThreadPoolExecutor | None = None

    def fetch(self, rows: Iterable[int]) -> dict[int, Array]:
        """Return the samples in these rows except faults."""
        unique_rows = dict.fromkeys(map(int, rows))
        samples = {r: np.asarray(self.kept_samples[r]) for r in unique_rows if self._is_kept(r)}
        if missing_rows := [row for row in unique_rows if row not in samples]:
            entries = [self.origin.entries[row] for row in missing_rows]
            samples |= self._check_results(missing_rows, decode_files(self._reading, entries))
        return samples

    def _is_kept(self, row: int) -> bool:
        return row < len(self.kept_samples) and row not in self.holes

    @property
    def bytes_each(self) -> int:
        """Bytes of a stored sample."""
        return math.prod(self.origin.shape) * self.origin.dtype.itemsize

    def remember(self, samples: Mapping[int, Array]) -> None:
        """Keep these samples in memory until more recent samples replace them."""
        max_samples = REMEMBERED // max(1, self.bytes_each)
        with self._lock:
            for row in list(samples)[-max_samples:] if max_samples else ():
                self._recent[row] = samples[row]
            while len(self._recent) > max_samples:
                self._recent.popitem(last=False)

    def replace_ahead(self, samples: dict[int, Array]) -> None:
        """Replace the samples that were decoded ahead."""
        self._ahead = samples

    def look_up(self, rows: Indices) -> Iterator[Array]:
        """Yield the samples in these rows, in order.

        The next readable sample replaces a fault. It is a held-out sample for a held-out fault, and
        a training sample otherwise.

        Raises:
            DataError: no sample can be read any more.
        """
        unique_rows = dict.fromkeys(rows.tolist())
        samples = {r: x for r in unique_rows if (x := self._find_in_memory(r)) is not None}
        samples |= self._decode_rows([row for row in unique_rows if row not in samples])
        for row in rows.tolist():
            yield samples[row] if row in samples else self._successor(row)

    def submit(self, act: Any, *values: Any) -> Future[Any]:
        """Call a function in a thread pool. The first call starts it, with a thread per worker."""
        if self._pool is None:
            count = min(self.workers or cores(), MOST_THREADS)
            self._pool = ThreadPoolExecutor(count, thread_name_prefix="diffuse-stream")
        return self._pool.submit(act, *values)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the kept samples and the digests as plain values.

        The source is its local path, because the data behind a name on the hub may change.
        """
        values = vars(self.origin).copy()
        del values["digests"], values["settings"]
        return {
            **values,
            "source": str(self._reading.source.path.absolute()),
            "asked": dataclasses.asdict(self.origin.settings),
            "dtype": self.origin.dtype.str,
            "holes": sorted(self.holes),
            "workers": self.workers,
            "strict": self.strict,
        }

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], digests: npt.NDArray[np.uint8], kept_samples: Array
    ) -> Stream:
        """Rebuild a stream from the values of `to_dict`."""
        stored = values["asked"]
        settings = dict(zip(stored, lists_to_tuples(stored.values()), strict=True))
        origin = StreamSource(
            source=values["source"],
            medium=values["medium"],
            settings=ReadSettings(**settings),
            entries=[Entry(*entry) for entry in values["entries"]],
            digests=digests,
            shape=tuple(values["shape"]),
            dtype=np.dtype(values["dtype"]),
            single=values["single"],
        )
        return cls(origin, kept_samples, values["holes"], values["workers"], values["strict"])

    def close(self) -> None:
        """End the threads, and close the source."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        if reading := self.__dict__.pop("_reading", None):
            reading.source.close()

    def faults(self) -> list[tuple[str, str]]:
        """Return the samples found missing or changed since the last call, with the reasons."""
        with self._lock:
            faults, self._faults = self._faults, []
        return [(self.origin.entries[row].name, reason) for row, reason in faults]

    def unreadable_error(self) -> DataError:
        """Return the error for a source whose samples cannot be read any more."""
        row, reason = self._last
        name = show(self.origin.entries[row].name)
        kind = MEDIA[self.origin.medium]
        text = f"{show(self.origin.source)} no longer holds its {kind.many}: {name}: {reason}"
        return DataError(
            text, "Put them back as they were", code="data_changed", path=self.origin.source
        )

    @cached_property
    def _reading(self) -> DecodingTask:
        MEDIA[self.origin.medium].prepare()
        source = open_source(Path(self.origin.source), single=self.origin.single)
        settings = dataclasses.replace(self.origin.settings, size=self.origin.shape[1:])
        return DecodingTask(source, self.origin.medium, settings)

    def read_first(self, count: int) -> Iterator[Array | None]:
        """Yield the first `count` samples, None for a fault."""
        entries = tuple(self.origin.entries[:count])
        for row, result in enumerate(decode_all(lambda: self._reading, entries, self.workers)):
            yield self._check_results([row], [result]).get(row)

    def _check_results(
        self, rows: Sequence[int], results: Iterable[DecodedFile]
    ) -> dict[int, Array]:
        samples = {}
        for row, result in zip(rows, results, strict=True):
            fault = result.reason
            if result.read is not None:
                if result.read.digest == self.origin.digests[row].tobytes():
                    samples[row] = self._as_stored(result.read.values)
                    continue
                fault = reasons.CHANGED
            if self.strict:
                text = f"{show(result.entry.name)}: {fault}"
                hint = "Put it back, or leave --strict out to skip such files"
                path = Path(self.origin.source, result.entry.name)
                raise DataError(text, hint, code="data_changed", path=path)
            with self._lock:
                if row not in self._faulty_rows:
                    self._faulty_rows.add(row)
                    self._faults.append((row, fault))
                self._last = row, fault
        return samples

    def _as_stored(self, values: Array) -> Array:
        """Return a decoded sample in the shape and type of the stored samples."""
        settings = self._reading.settings
        if values.shape[1:] != settings.size:
            values = MEDIA[self.origin.medium].fit(values, settings)
        values = values.astype(self.origin.dtype, copy=False)
        return np.ascontiguousarray(np.broadcast_to(values, self.origin.shape))

    def _decode_rows(self, rows: Sequence[int]) -> dict[int, Array]:
        """Decode samples in threads, and keep them in memory for a while."""
        if not rows:
            return {}
        entries = tuple(self.origin.entries[row] for row in rows)
        decoded = decode_all(lambda: self._reading, entries, self.workers)
        samples = self._check_results(rows, decoded)
        self.remember(samples)
        return samples

    def _find_in_memory(self, row: int) -> Array | None:
        if self._is_kept(row):
            return np.asarray(self.kept_samples[row])
        if row in self._ahead:
            return self._ahead[row]
        with self._lock:
            if row in self._recent:
                self._recent.move_to_end(row)
                return self._recent[row]
        return None

    @cached_property
    def _held_out(self) -> npt.NDArray[np.bool_]:
        return mask_held_out(self.origin.digests)

    def _successor(self, row: int) -> Array:
        tried = 0
        for step in range(1, len(self.origin.entries)):
            place = (row + step) % len(self.origin.entries)
            if self._held_out[place] != self._held_out[row]:
                continue
            sample = self._find_in_memory(place)
            if sample is None:
                sample = self._decode_rows([place]).get(place)
            if sample is not None:
                return sample
            if (tried := tried + 1) == TRIES:
                break
        raise self.unreadable_error()
