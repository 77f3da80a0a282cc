"""Samples that are decoded when they are looked up, for data sets that fit in no memory or disk."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
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
from diffuse_cli.media import MEDIA, Array, Indices, ReadSettings, Size
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


def replace_unreadable(
    indices: Indices, parts: Sequence[Indices], read: Callable[[Indices], npt.NDArray[np.bool_]]
) -> Indices | None:
    """Return the indices of samples, each unreadable one replaced by the next of its part.

    Args:
        parts: sorted indices of the training samples and of the held-out samples, which do not
            replace each other.
        read: reads samples, and returns which of them could be read.

    Returns:
        The indices, or None if `TRIES` samples in a row cannot be read.
    """
    chosen, missing = indices.copy(), np.arange(len(indices))
    for _ in range(min(TRIES, sum(map(len, parts)))):
        missing = missing[~read(chosen[missing])]
        if len(missing) == 0:
            return chosen
        chosen[missing] = [_successor(index, parts) for index in chosen[missing]]
    return None


def _successor(index: int, parts: Sequence[Indices]) -> int:
    for part in parts:
        place = int(np.searchsorted(part, index))
        if place < len(part) and part[place] == index:
            return int(part[(place + 1) % len(part)])
    raise LookupError(index)


@dataclass(eq=False)
class Stream:
    """Thread-safe samples (N, C, *size) that are decoded when they are looked up.

    It can be passed instead of an array of stored samples, and is indexed along the first axis. A
    sample that has changed since it was listed, or cannot be read any more, is a fault. The stream
    reports it once and never returns it.

    Attributes:
        source: the path of a folder, a zip file or another source.
        settings: the read settings of the samples.
        entries: the entries of the N samples in the source.
        digests: uint8 (N, 16), hashes of the samples when they were listed.
        sample_shape, dtype: the shape (C, *size) and type of each stored sample.
        single: whether the source may be a single sample.
        kept_samples: (K, C, *size), the first K samples.
        holes: indices of kept samples that could not be read.
        workers: threads that decode ahead; None for one per core, shared with other processes.
        ahead: samples that were decoded ahead.
    """

    source: str
    medium: str
    settings: ReadSettings
    entries: Sequence[Entry]
    digests: npt.NDArray[np.uint8]
    sample_shape: Size
    dtype: np.dtype[Any]
    single: bool
    kept_samples: Array
    workers: int | None
    strict: bool
    holes: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.shape: Size = (len(self.entries), *self.sample_shape)
        self.ndim = len(self.shape)
        self._recent: OrderedDict[int, Array] = OrderedDict()
        self.ahead: dict[int, Array] = {}
        self._lock = threading.Lock()
        self._faulty_rows: set[int] = set()
        self._faults: list[tuple[int, str]] = []
        self._last = 0, reasons.VANISHED
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: Any) -> Array:
        """Return samples. The next readable sample of the same part replaces a fault.

        Raises:
            DataError: no sample can be read any more.
        """
        rows = np.arange(len(self))[key]
        if not np.ndim(rows):
            sample: Array = self[rows[None]][0]
            return sample
        samples: dict[int, Array] = {}
        chosen = replace_unreadable(rows, self._parts, lambda rows: self._look_up(rows, samples))
        if chosen is None:
            raise self.unreadable_error()
        stored = np.empty((len(rows), *self.sample_shape), self.dtype)
        for place, row in enumerate(chosen.tolist()):
            stored[place] = samples[row]
        return stored

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("a stream of samples is too large for an array")

    def _look_up(self, rows: Indices, samples: dict[int, Array]) -> npt.NDArray[np.bool_]:
        """Add the samples in these rows, and return which of them could be read."""
        missing = [row for row in dict.fromkeys(rows.tolist()) if row not in samples]
        samples |= {r: x for r in missing if (x := self._find_in_memory(r)) is not None}
        samples |= self._decode_rows([row for row in missing if row not in samples])
        return np.array([row in samples for row in rows.tolist()], np.bool_)

    def fetch(self, rows: Iterable[int]) -> dict[int, Array]:
        """Return the samples in these rows except faults."""
        unique_rows = dict.fromkeys(map(int, rows))
        samples = {r: np.asarray(self.kept_samples[r]) for r in unique_rows if self._is_kept(r)}
        if missing_rows := [row for row in unique_rows if row not in samples]:
            entries = [self.entries[row] for row in missing_rows]
            samples |= self._check_results(missing_rows, decode_files(self._reading, entries))
        return samples

    def _is_kept(self, row: int) -> bool:
        return row < len(self.kept_samples) and row not in self.holes

    @property
    def bytes_each(self) -> int:
        """Bytes of a stored sample."""
        return math.prod(self.sample_shape) * self.dtype.itemsize

    def remember(self, samples: Mapping[int, Array]) -> None:
        """Keep these samples in memory until more recent samples replace them."""
        max_samples = REMEMBERED // max(1, self.bytes_each)
        with self._lock:
            for row in list(samples)[-max_samples:] if max_samples else ():
                self._recent[row] = samples[row]
            while len(self._recent) > max_samples:
                self._recent.popitem(last=False)

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
        return {
            "source": str(self._reading.source.path.absolute()),
            "medium": self.medium,
            "settings": asdict(self.settings),
            "entries": self.entries,
            "sample_shape": self.sample_shape,
            "dtype": self.dtype.str,
            "single": self.single,
            "workers": self.workers,
            "strict": self.strict,
            "holes": sorted(self.holes),
        }

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], digests: npt.NDArray[np.uint8], kept_samples: Array
    ) -> Stream:
        """Rebuild a stream from the values of `to_dict`."""
        stored = values["settings"]
        settings = dict(zip(stored, lists_to_tuples(stored.values()), strict=True))
        plain = {
            **values,
            "settings": ReadSettings(**settings),
            "entries": [Entry(*entry) for entry in values["entries"]],
            "sample_shape": tuple(values["sample_shape"]),
            "dtype": np.dtype(values["dtype"]),
            "holes": frozenset(values["holes"]),
        }
        return cls(**plain, digests=digests, kept_samples=kept_samples)

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
        return [(self.entries[row].name, reason) for row, reason in faults]

    def unreadable_error(self) -> DataError:
        """Return the error for a source whose samples cannot be read any more."""
        row, reason = self._last
        name, many = show(self.entries[row].name), MEDIA[self.medium].many
        text = f"{show(self.source)} no longer holds its {many}: {name}: {reason}"
        return DataError(text, "Put them back as they were", code="data_changed", path=self.source)

    @cached_property
    def _reading(self) -> DecodingTask:
        MEDIA[self.medium].prepare()
        source = open_source(Path(self.source), single=self.single)
        settings = replace(self.settings, size=self.sample_shape[1:])
        return DecodingTask(source, self.medium, settings)

    def read_first(self, count: int) -> Iterator[Array | None]:
        """Yield the first `count` samples, None for a fault."""
        entries = tuple(self.entries[:count])
        for row, result in enumerate(decode_all(lambda: self._reading, entries, self.workers)):
            yield self._check_results([row], [result]).get(row)

    def _check_results(
        self, rows: Sequence[int], results: Iterable[DecodedFile]
    ) -> dict[int, Array]:
        samples = {}
        for row, result in zip(rows, results, strict=True):
            fault = result.reason
            if result.read is not None:
                if result.read.digest == self.digests[row].tobytes():
                    samples[row] = self._as_stored(result.read.values)
                    continue
                fault = reasons.CHANGED
            if self.strict:
                text = f"{show(result.entry.name)}: {fault}"
                hint = "Put it back, or leave --strict out to skip such files"
                path = Path(self.source, result.entry.name)
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
            values = MEDIA[self.medium].fit(values, settings)
        values = values.astype(self.dtype, copy=False)
        return np.ascontiguousarray(np.broadcast_to(values, self.sample_shape))

    def _decode_rows(self, rows: Sequence[int]) -> dict[int, Array]:
        """Decode samples in threads, and keep them in memory for a while."""
        if not rows:
            return {}
        entries = tuple(self.entries[row] for row in rows)
        decoded = decode_all(lambda: self._reading, entries, self.workers)
        samples = self._check_results(rows, decoded)
        self.remember(samples)
        return samples

    def _find_in_memory(self, row: int) -> Array | None:
        if self._is_kept(row):
            return np.asarray(self.kept_samples[row])
        if row in self.ahead:
            return self.ahead[row]
        with self._lock:
            if row in self._recent:
                self._recent.move_to_end(row)
                return self._recent[row]
        return None

    @cached_property
    def _parts(self) -> tuple[Indices, Indices]:
        held_out = mask_held_out(self.digests)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def find_stream(stored: Any) -> Stream | None:
    """Return stored samples if they are a stream, or None if all are in memory or a file."""
    return stored if isinstance(stored, Stream) else None
