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
from diffuse_cli.data.decoding_workers import (
    DecodedSample,
    DecodingTask,
    Result,
    SkippedFile,
    decode_all,
    decode_files,
    make_blank,
)
from diffuse_cli.data.sources.entries import Entry, Listing
from diffuse_cli.data.store import KeptSamples, Shape, Store
from diffuse_cli.data.stream import SECONDS_BETWEEN_EVENTS
from diffuse_cli.data.summary import NAMED
from diffuse_cli.media import MEDIA, Array, Medium, Read, ReadSettings, Size
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.files import show

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
    kept: KeptSamples,
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
        if isinstance(result, SkippedFile) or _fits(result.read.values, current.asked):
            return result
        return decode_files(current, [result.entry])[0]

    def decoded_again(count: int) -> Iterator[Array | None]:
        """Yield the first samples, None for one that has become unusable."""
        for result in decode_all(lambda: current, tuple(tally.entries[:count]), workers):
            yield result.read.values if isinstance(result, DecodedSample) else None

    yield Progress(task, 0, total)
    found = index.results(listing, lambda rest: decode_all(lambda: current, rest, workers))
    try:
        for done, (result, known) in enumerate(found, 1):
            store = kept.store
            result = result if known else decoded(result)
            if isinstance(result, DecodedSample):
                result = result._replace(read=_cut(store, result.read, current.asked, kind))
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
                if known:  # its values are zeros, so only shape and type count
                    values = make_blank(values.shape, current.asked.numbers or values.dtype)
                asked, shape, dtype = _resolve_common(current.asked, store, values, kind)
                again = None
                if asked is not current.asked:
                    current = dataclasses.replace(current, asked=asked)
                    again = decoded_again(store.count if store and kept.open else 0)
                if store is None or (store.shape, store.dtype) != (shape, dtype):
                    kept.replace_store(shape, dtype, again)
                final = decoded(result) if kept.open and not known else None
                kept.append(final.read.values if isinstance(final, DecodedSample) else None)
            if time.monotonic() - last > SECONDS_BETWEEN_EVENTS:
                last = time.monotonic()
                yield Progress(task, done, total)
        yield Progress(task, total, total)
    except BaseException as error:
        if kept.store is not None:
            kept.store.abort(error)
        raise
    return current


def _fits(values: Array, asked: ReadSettings) -> bool:
    """Whether a decoded sample has the size, channels and type of a request."""
    if asked.numbers and asked.numbers not in (values.dtype, values.dtype.name):
        return False
    return values.shape[1:] == (asked.size or values.shape[1:]) and (
        asked.channels is None or values.shape[0] in (1, asked.channels)
    )


def _cut(store: Store | None, read: Read, asked: ReadSettings, kind: Medium) -> Read:
    """Return a sample cut to the size of the samples that are there, if it is larger.

    A resumed run asks for this size, so the first run must have the same samples. An index keeps
    the shape before.
    """
    own = read.values.shape
    if store is None or kind.mixed or store.shape[0] != own[0] or store.shape == own:
        return read
    with contextlib.suppress(Unusable):
        sized = dataclasses.replace(asked, size=store.shape[1:])
        return read._replace(values=kind.fit(read.values, sized))
    return read


def _can_store(store: Store | None, read: Read, kind: Medium) -> bool:
    """Whether a sample can be stored next to the samples that are there."""
    if store is None or not kind.mixed:
        return store is None or store.shape == read.values.shape
    return read.layout not in kind.alike or store.shape[0] == read.values.shape[0]


def _resolve_common(
    asked: ReadSettings, store: Store | None, values: Array, kind: Medium
) -> tuple[ReadSettings, Shape, np.dtype[Any]]:
    """Return the request, the shape and the type that stored samples share with another sample.

    Samples of several sizes get the medium's size. If the medium has several bit depths, the type
    with the fewest bits wins. Otherwise the type is one that holds the values of all samples.
    """
    (channels, *own), dtype, changed = values.shape, values.dtype, dict[str, Any]()
    size = asked.size
    if store is None:
        if size is not None and len(size) != len(own):  # equal sides, in any number of dimensions
            asked = dataclasses.replace(asked, size=tuple(own))
        return asked, values.shape, dtype
    if size is None and store.shape[1:] != tuple(own):
        size = changed["size"] = (kind.sides[len(own)],) * len(own)
    least, most = sorted((channels, store.shape[0]))
    if 1 < least < most:
        changed["channels"] = most
    if store.dtype != dtype and kind.bits:
        dtype = min(store.dtype, dtype, key=lambda each: each.itemsize)
        changed["numbers"] = dtype.name
    elif store.dtype != dtype:
        dtype = np.promote_types(store.dtype, dtype)
    if changed:
        asked = dataclasses.replace(asked, **changed)
    return asked, (most, *(size or own)), dtype
