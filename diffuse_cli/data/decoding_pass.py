"""Decode every file of a listing into a store, whose shape and type follow from the samples."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.data.dataset_index import DatasetIndex
from diffuse_cli.data.decoding_threads import (
    DecodedSample,
    DecodingTask,
    Result,
    SkippedFile,
    decode_all,
    decode_files,
)
from diffuse_cli.data.sources.entries import Entry, Listing
from diffuse_cli.data.store import KeptSamples, Shape, Store, make_blank
from diffuse_cli.data.stream import SECONDS_BETWEEN_EVENTS
from diffuse_cli.data.summary import NAMED
from diffuse_cli.media import MEDIA, Array, Medium, Read, ReadSettings, Size
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system import DataError, Progress, Work, show

Reasons = dict[str, tuple[int, tuple[str, ...]]]


@dataclass
class Tally:
    """Running counts for the summary."""

    entries: list[Entry] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: Counter[Size] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    color: int = 0
    layout: str | None = None
    skipped: Reasons = field(default_factory=dict)
    remarks: Reasons = field(default_factory=dict)

    def add(self, entry: Entry, read: Read) -> None:
        """Count a decoded sample."""
        self.entries.append(entry)
        self.digests.append(read.digest)
        self.sizes[read.size] += 1
        self.modes[read.mode] += 1
        self.color += read.channels > 1
        self.layout = self.layout or read.layout
        for remark in read.remarks:
            _count_reason(self.remarks, remark, entry)

    def digest_array(self) -> npt.NDArray[np.uint8]:
        """Return the digests of the samples, (N, 16)."""
        return np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, 16)


def _count_reason(counts: Reasons, reason: str, entry: Entry) -> None:
    count, names = counts.get(reason, (0, ()))
    counts[reason] = count + 1, (*names, entry.name) if count < NAMED else names


def decode_listing(
    reading: DecodingTask,
    listing: Listing,
    tally: Tally,
    kept_samples: KeptSamples,
    index: DatasetIndex,
    strict: bool,
    workers: int,
) -> Work[DecodingTask]:
    """Decode every file into a store, and return the settings to read the samples again.

    The store is replaced when a sample does not fit its shape. Files in the index are not decoded.
    If the request leaves sizes open, the samples complete it, and files that were decoded before
    are decoded again: a resumed run asks for the completed request.
    """
    total, kind, current = len(listing.candidates), MEDIA[reading.medium], reading
    task, last = f"reading {kind.many}", time.monotonic()

    def decoded(result: Result) -> Result:
        """Return the result by the request as it is now."""
        if isinstance(result, SkippedFile) or _fits(result.read.values, current.settings):
            return result
        return decode_files(current, [result.entry])[0]

    def decoded_again(count: int) -> Iterator[Array | None]:
        """Yield the first samples, None for one that has become unusable."""
        for result in decode_all(lambda: current, tuple(tally.entries[:count]), workers):
            yield result.read.values if isinstance(result, DecodedSample) else None

    yield Progress(task, 0, total)
    results = index.results(listing, lambda entries: decode_all(lambda: current, entries, workers))
    try:
        for count, (result, from_index) in enumerate(results, 1):
            store = kept_samples.store
            result = result if from_index else decoded(result)
            if isinstance(result, DecodedSample):
                result = result._replace(read=_cut(store, result.read, current.settings, kind))
            if isinstance(result, DecodedSample) and not _can_store(store, result.read, kind):
                result = SkippedFile(result.entry, reasons.SHAPE)
            if isinstance(result, SkippedFile):
                if strict:
                    text = f"{show(result.entry.name)}: {result.reason}"
                    raise DataError(text, "Remove it, or leave --strict out to skip such files")
                _count_reason(tally.skipped, result.reason, result.entry)
            else:
                tally.add(result.entry, result.read)
                values = result.read.values
                if from_index:  # its values are zeros, so only shape and type count
                    values = make_blank(values.shape, current.settings.numbers or values.dtype)
                settings, shape, dtype = _resolve_common(current.settings, store, values, kind)
                again = None
                if settings is not current.settings:
                    current = dataclasses.replace(current, settings=settings)
                    again = decoded_again(store.count if store and kept_samples.open else 0)
                if store is None or (store.shape, store.dtype) != (shape, dtype):
                    kept_samples.replace_store(shape, dtype, again)
                final = decoded(result) if kept_samples.open and not from_index else None
                kept_samples.append(final.read.values if isinstance(final, DecodedSample) else None)
            if time.monotonic() - last > SECONDS_BETWEEN_EVENTS:
                last = time.monotonic()
                yield Progress(task, count, total)
        yield Progress(task, total, total)
    except BaseException as error:
        if kept_samples.store is not None:
            kept_samples.store.abort(error)
        raise
    return current


def _fits(values: Array, settings: ReadSettings) -> bool:
    """Whether a decoded sample has the size, channels and type of a request."""
    if settings.numbers and settings.numbers not in (values.dtype, values.dtype.name):
        return False
    return values.shape[1:] == (settings.size or values.shape[1:]) and (
        settings.channels is None or values.shape[0] in (1, settings.channels)
    )


def _cut(store: Store | None, read: Read, settings: ReadSettings, kind: Medium) -> Read:
    """Return a sample cut to the size of the samples that are there, if it is larger.

    A resumed run asks for this size, so the first run must have the same samples. An index keeps
    the shape before.
    """
    shape = read.values.shape
    if store is None or kind.mixed or store.shape[0] != shape[0] or store.shape == shape:
        return read
    with contextlib.suppress(Unusable):
        sized = dataclasses.replace(settings, size=store.shape[1:])
        return read._replace(values=kind.fit(read.values, sized))
    return read


def _can_store(store: Store | None, read: Read, kind: Medium) -> bool:
    """Whether a sample can be stored next to the samples that are there."""
    if store is None or not kind.mixed:
        return store is None or store.shape == read.values.shape
    return read.layout not in kind.alike or store.shape[0] == read.values.shape[0]


def _resolve_common(
    settings: ReadSettings, store: Store | None, values: Array, kind: Medium
) -> tuple[ReadSettings, Shape, np.dtype[Any]]:
    """Return the request, the shape and the type that stored samples share with another sample.

    Samples of several sizes get the medium's size. If the medium has several bit depths, the type
    with the fewest bits wins. Otherwise the type is one that holds the values of all samples.
    """
    (channels, *sides), dtype, changed = values.shape, values.dtype, dict[str, Any]()
    size = settings.size
    if store is None:
        if size is not None and len(size) != len(sides):  # equal sides, in any number of dimensions
            settings = dataclasses.replace(settings, size=tuple(sides))
        return settings, values.shape, dtype
    if size is None and store.shape[1:] != tuple(sides):
        size = changed["size"] = (kind.sides[len(sides)],) * len(sides)
    min_channels, max_channels = sorted((channels, store.shape[0]))
    if 1 < min_channels < max_channels:
        changed["channels"] = max_channels
    if store.dtype != dtype and kind.bits:
        dtype = min(store.dtype, dtype, key=lambda candidate: candidate.itemsize)
        changed["numbers"] = dtype.name
    elif store.dtype != dtype:
        dtype = np.promote_types(store.dtype, dtype)
    if changed:
        settings = dataclasses.replace(settings, **changed)
    return settings, (max_channels, *(size or sides)), dtype
