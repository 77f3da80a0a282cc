"""Decodes every file of a listing into a store, whose shape and type follow from the samples."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.data.dataset_index import Index
from diffuse_cli.data.decoding_workers import Decoded, Reading, Skipped, decode_all
from diffuse_cli.data.sources import Entry, Listing
from diffuse_cli.data.store import Kept, Shape, Store
from diffuse_cli.data.stream import SECONDS_BETWEEN_EVENTS
from diffuse_cli.data.summary import NAMED
from diffuse_cli.media import MEDIA, Array, Read, Size, file_errors
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.files import show


@dataclass
class Tally:
    """The counts of the summary so far."""

    entries: list[Entry] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: Counter[Size] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    colour: int = 0
    layout: str | None = None
    skipped: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    remarks: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    def add(self, entry: Entry, read: Read) -> None:
        self.entries.append(entry)
        self.digests.append(read.digest)
        self.sizes[read.size] += 1
        self.modes[read.mode] += 1
        self.colour += read.channels > 1
        self.layout = self.layout or read.layout
        for remark in read.remarks:
            _count(self.remarks, remark, entry)

    def all_digests(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, 16)

    def skip(self, skip: Skipped) -> None:
        _count(self.skipped, skip.reason, skip.entry)


def _count(reasons: dict[str, tuple[int, tuple[str, ...]]], reason: str, entry: Entry) -> None:
    count, names = reasons.get(reason, (0, ()))
    reasons[reason] = count + 1, (*names, entry.name) if count < NAMED else names


def collect(
    reading: Reading,
    listing: Listing,
    tally: Tally,
    kept: Kept,
    index: Index,
    strict: bool,
    workers: int,
) -> Work[None]:
    """Decode everything into a store, which is replaced when a sample does not fit its shape; what
    the index knows is not decoded."""
    total, kind = len(listing.candidates), MEDIA[reading.medium]
    task = f"reading {kind.many}"

    def fitted(values: Array) -> Array:
        asked = reading.asked
        numbers = asked.numbers
        fits = asked.size is None or values.shape[1:] == asked.size
        fits = fits and (not numbers or values.dtype == numbers or values.dtype.name == numbers)
        fits = fits and (asked.channels is None or values.shape[0] in (1, asked.channels))
        size = asked.size or values.shape[1:]
        return values if fits else kind.fit(values, dataclasses.replace(asked, size=size))

    last = time.monotonic()
    yield Progress(task, 0, total)
    found = index.results(listing, lambda rest: decode_all(reading, rest, workers))
    try:
        for done, (result, known) in enumerate(found, 1):
            if isinstance(result, Decoded) and not _goes_with(kept.store, result.read, reading):
                result = Skipped(result.entry, file_errors.SHAPE)
            if isinstance(result, Skipped):
                if strict:
                    text = f"{show(result.entry.name)}: {result.reason}"
                    raise DataError(text, "Remove it, or leave --strict out to skip such files")
                tally.skip(result)
            else:
                tally.add(result.entry, result.read)
                values = _unread(result.read, reading) if known else fitted(result.read.values)
                store = kept.store
                shape = _shape_for(store, values, reading)
                dtype = _type_for(store, values, reading)
                if store is None or (store.shape, store.dtype) != (shape, dtype):
                    kept.renew(shape, dtype, fitted)
                kept.append(None if known or not kept.open else fitted(values))
            if time.monotonic() - last > SECONDS_BETWEEN_EVENTS:
                last = time.monotonic()
                yield Progress(task, done, total)
        yield Progress(task, total, total)
    except BaseException as error:
        kept.abort(error)
        raise


def _unread(read: Read, reading: Reading) -> Array:
    """In the place of a known sample's numbers: their shape, and the type that they become."""
    dtype = reading.asked.numbers or read.values.dtype
    return np.broadcast_to(np.zeros((), dtype), read.values.shape)


def _goes_with(store: Store | None, read: Read, reading: Reading) -> bool:
    """Whether a sample can be stored with others; gives a size of equal sides its dimensions."""
    shape, asked = read.values.shape[1:], reading.asked
    if store is None:
        if asked.size is not None and len(asked.size) != len(shape):
            reading.asked = dataclasses.replace(asked, size=shape)
        return True
    kind = MEDIA[reading.medium]
    if kind.mixed:
        alike = read.layout in kind.alike
        return not alike or store.shape[0] == read.values.shape[0]
    return store.shape == read.values.shape


def _type_for(store: Store | None, values: Array, reading: Reading) -> np.dtype[Any]:
    """The type of a store that takes a sample, too: that of fewest bits, where a medium has
    several, or one that holds the numbers of both."""
    if store is None or store.dtype == values.dtype:
        return values.dtype
    if not MEDIA[reading.medium].bits:
        return np.promote_types(store.dtype, values.dtype)
    least = min(store.dtype, values.dtype, key=lambda own: own.itemsize)
    reading.asked = dataclasses.replace(reading.asked, numbers=least.name)
    return least


def _shape_for(store: Store | None, values: Array, reading: Reading) -> Shape:
    """The shape that a store needs for `values`, too; where sizes differ, it decides the size."""
    channels, *size = values.shape
    if store is None:
        return channels, *size
    if reading.asked.size is None and store.shape[1:] != tuple(size):
        side = MEDIA[reading.medium].sides[len(size)]
        reading.asked = dataclasses.replace(reading.asked, size=(side,) * len(size))
    most = max(channels, store.shape[0])
    if 1 < min(channels, store.shape[0]) < most:
        reading.asked = dataclasses.replace(reading.asked, channels=most)
    return most, *(reading.asked.size or size)
