"""From a folder or zip file to `Samples`: each file is read once and decoded once, in order."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from diffuse_cli.data import cache as caches
from diffuse_cli.data.jobs import Decoded, Reading, Skipped
from diffuse_cli.data.pool import decode_all
from diffuse_cli.data.samples import Samples
from diffuse_cli.data.sources import Listing, classes_of, list_samples, open_source
from diffuse_cli.data.summary import NAMED, Summary, skip_counts, span
from diffuse_cli.errors import DataError
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.files import show
from diffuse_cli.media import MEDIA, Array, Asked, Size, prepare

TASK = "reading images"
_SECONDS_BETWEEN_EVENTS = 0.1


@dataclass
class _Tally:
    """What the summary counts, as it goes along."""

    names: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: Counter[Size] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    colour: int = 0
    skipped: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, image: Decoded) -> None:
        self.names.append(image.entry.name)
        self.digests.append(image.read.digest)
        self.sizes[image.read.size] += 1
        self.modes[image.read.mode] += 1
        self.colour += image.read.channels > 1

    def skip(self, skip: Skipped) -> None:
        count, names = self.skipped.get(skip.reason, (0, ()))
        first = (*names, skip.entry.name) if count < NAMED else names
        self.skipped[skip.reason] = count + 1, first


def read_images(
    source: str | Path,
    *,
    size: Size | None = None,
    channels: int | None = None,
    background: str = "white",
    medium: str | None = None,
    strict: bool = False,
    workers: int | None = None,
    cache: Path | None = None,
    map_over: int = 0,
) -> Work[Samples]:
    """Find, check and decode every image of a folder or zip file.

    Yields `Progress` and, where images are resized without being asked to, a `Notice`.

    Args:
        source: a folder, searched to any depth, or a zip file.
        size: (height, width) of the result; None keeps one common size of at most 64 a side,
            and gives 64x64 otherwise.
        channels: 1 or 3; None is 1 where every image is grey, 3 otherwise.
        background: the colour behind transparent images.
        medium: what the samples are; None for what most of the files are.
        strict: end on the first bad file instead of skipping it.
        workers: threads; None for one a core.
        cache: a folder where the pixels are kept in a mapped file instead of in memory.
        map_over: with `cache`, sets that can be no larger than this many bytes stay in memory.

    Returns:
        `Samples`; the order is that of the names' bytes.

    Raises:
        DataError: there is no such source, no usable image, or, with `strict`, a bad file.
        OutputError: the cache cannot be written.
    """
    opened = open_source(Path(source))
    try:
        listing = list_samples(opened, medium)
        prepare(listing.medium)
        asked = Asked(size, channels, ImageColor.getrgb(background)[:3])
        reading = Reading(opened, listing.medium, asked)
        side = MEDIA[listing.medium].KEPT_SIDE
        bound = len(listing.candidates) * 3 * math.prod(size or (side, side))
        folder = cache if cache is not None and bound > map_over else None
        tally = _Tally()
        pixels = yield from _collect(reading, listing, tally, folder, strict, workers or _cores())
    finally:
        opened.close()
    if pixels is None:
        raise DataError(_nothing(source, listing, tally))
    side = MEDIA[listing.medium].KEPT_SIDE
    if size is None and (notice := _size_notice(tally.sizes, pixels.shape[2:], side)):
        yield Notice(notice)
    return _images(source, pixels, listing, tally)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _collect(
    reading: Reading,
    listing: Listing,
    tally: _Tally,
    folder: Path | None,
    strict: bool,
    workers: int,
) -> Generator[Any, None, Array | None]:
    """Decode everything into a store, making it anew where an image does not fit what it holds."""
    total = len(listing.candidates)
    store: caches.Store | None = None
    if folder is not None:
        caches.forget(folder)

    fit = MEDIA[reading.medium].fit

    def fitted(values: Array) -> Array:
        size = reading.asked.size
        return values if size is None or values.shape[1:] == size else fit(values, size)

    def new_store(shape: caches.Shape, dtype: np.dtype[Any]) -> caches.Store:
        if folder is None:
            return caches.Memory(total, shape, dtype)
        return caches.Mapped(folder, shape, dtype)

    last = time.monotonic()
    yield Progress(TASK, 0, total)
    try:
        for done, result in enumerate(decode_all(reading, listing.candidates, workers), 1):
            if isinstance(result, Skipped):
                if strict:
                    raise DataError(f"{show(result.entry.name)}: {result.reason}", _STRICT_HINT)
                tally.skip(result)
            else:
                tally.add(result)
                values = fitted(result.read.values)
                shape = _shape_for(store, values, reading)
                if store is None:
                    store = new_store(shape, values.dtype)
                elif store.shape != shape:
                    kept, store = store.finish(), new_store(shape, values.dtype)
                    for old in kept:
                        store.append(fitted(old))
                store.append(fitted(values))
            if time.monotonic() - last > _SECONDS_BETWEEN_EVENTS:
                last = time.monotonic()
                yield Progress(TASK, done, total)
        yield Progress(TASK, total, total)
    except BaseException as error:
        if store is not None:
            store.abort(error)
        raise
    return store.finish() if store is not None else None


_STRICT_HINT = "Remove it, or leave --strict away to skip such files"


def _shape_for(store: caches.Store | None, values: Array, reading: Reading) -> caches.Shape:
    """The shape a store needs to take `values` too; it decides the size where sizes differ."""
    channels, *size = values.shape
    if store is None:
        return channels, *size
    if reading.asked.size is None and store.shape[1:] != tuple(size):
        side = MEDIA[reading.medium].KEPT_SIDE
        reading.asked = dataclasses.replace(reading.asked, size=(side,) * len(size))
    return max(channels, store.shape[0]), *(reading.asked.size or size)


def _nothing(source: str | Path, listing: Listing, tally: _Tally) -> str:
    many = MEDIA[listing.medium].MANY
    if tally.skipped:
        return f"no usable {many} in {show(source)}: {skip_counts(tally.skipped)}"
    others = f" ({listing.others:,} files of other kinds)" if listing.others else ""
    return f"no {many} in {show(source)}{others}"


def _size_notice(sizes: Counter[Size], result: tuple[int, ...], side: int) -> str:
    """What to say where samples were resized without being asked to."""
    if len(sizes) == 1 and next(iter(sizes)) == result[::-1]:
        return ""
    usual = min(sizes.most_common(1)[0][0])
    advice = (
        "type --size 128 for more detail"
        if usual > side
        else (
            f"type --size {usual} to keep the usual size"
            if usual < side
            else "type --size for another"
        )
    )
    found = f"all images are {span(sizes)}" if len(sizes) == 1 else f"images of {span(sizes)}"
    return f"{found}: resized to {side}x{side}; {advice}"


def _images(source: str | Path, pixels: Array, listing: Listing, tally: _Tally) -> Samples:
    labels, class_names = classes_of(tally.names, [e.name for e in listing.candidates])
    counts = Counter(labels)
    summary = Summary(
        source=show(source),
        found=len(listing.candidates),
        usable=len(tally.names),
        channels=pixels.shape[1],
        sizes=dict(tally.sizes),
        modes=dict(tally.modes),
        greyed=tally.colour if pixels.shape[1] == 1 else 0,
        classes={name: counts[k] for k, name in enumerate(class_names)},
        unlabelled=counts[-1],
        skipped=tally.skipped,
        others=listing.others,
    )
    return Samples(
        stored=pixels,
        labels=np.array(labels, np.int64),
        class_names=class_names,
        names=tuple(tally.names),
        medium=listing.medium,
        digests=np.frombuffer(b"".join(tally.digests), np.uint8).reshape(-1, 16),
        summary=summary,
    )
