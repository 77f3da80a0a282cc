"""Read a `Dataset` from a source: each file is read once and decoded once, in order."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import ImageColor

from diffuse_cli import media
from diffuse_cli.data import sources
from diffuse_cli.data.decoding_pass import DatasetIndex, DecodingPass, Tally
from diffuse_cli.data.decoding_threads import DecodingTask
from diffuse_cli.data.samples import Dataset
from diffuse_cli.data.sources.base import Source
from diffuse_cli.data.store import Store, store_stream
from diffuse_cli.data.stream import Stream
from diffuse_cli.data.summary import Summary, remark_lines, skip_counts
from diffuse_cli.media import Array, ReadSettings, Size
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system import DataError, Notice, Work, plural, show, translate_errors


def match_quantities(names: Sequence[str], base_names: Sequence[str]) -> Iterator[Notice]:
    """Check that channels have the names of those of a model or another set, if both are known.

    Raises:
        DataError: they have the same names in another order.
    """
    if not (names and base_names) or names == base_names:
        return
    text = f"the channels are {', '.join(map(show, names))}"
    text += f" instead of {', '.join(map(show, base_names))}"
    if sorted(names) == sorted(base_names):
        raise DataError(text, "Name the variables in the second order", code="data_mismatch")
    yield Notice(text, warning=True)


LOOKED_AT = 256
"""Number of files that settle open options, such as the rate of sounds and the axes of arrays."""


def read_images(
    source: str | Path,
    *,
    size: Size | None = None,
    channels: int | None = None,
    background: str = "white",
    fit: str = "crop",
    medium: str | None = None,
    layout: str | None = None,
    numbers: str | None = None,
    bits: int | None = None,
    rate: int | None = None,
    transform: str | None = None,
    strict: bool = False,
    workers: int | None = None,
    cache: Path | None = None,
    map_over: int = 0,
    single: bool = False,
    keep: int | None = None,
    index: Path | None = None,
    goes_on: bool = False,
    sizable: bool = True,
) -> Work[Dataset]:
    """Find, check and decode every sample of a folder or zip file.

    Yields `Progress`, a `Notice` if samples are resized without `size`, and warnings about flaws of
    usable samples.

    Args:
        source: a folder, searched to any depth, or a zip file.
        size: (height, width) of the result; None keeps a common size up to the medium's
            `sides`, and resizes to that otherwise.
        channels: channels of the result; None for the most that a sample has.
        background: the color behind transparent images and around padded images.
        fit: a name in `FITS`, for samples whose shape differs from the result's.
        medium: a name in `MEDIA`; None for the medium of most files.
        layout, numbers, rate: as in `ReadSettings`.
        bits: bits per level, instead of `numbers`, for a medium that has `bits`.
        transform: the transform of the space, a name in `TRANSFORMS`.
        strict: stop at the first bad file instead of skipping it.
        workers: threads, None for one per core.
        cache: a folder for a mapped file of the samples, instead of memory.
        map_over: bytes up to which samples stay in memory despite `cache`.
        single: whether `source` may be a single sample.
        keep: bytes of samples to keep, in memory or the cache. Other samples are decoded when they
            are looked up. None keeps all.
        index: the file of a `DatasetIndex`, for a data set that may be larger than `keep`.
        goes_on: use a complete index even if the source has changed since.
        sizable: whether the caller has --size and --bits, which notices of changed samples name. If
            not, it reports resized samples by itself, with `Summary.describe_resizing`.

    Raises:
        DataError: the source does not exist, has no usable sample, or, with `strict`, a bad file.
        OutputError: the cache cannot be written.
        UsageError: the medium does not support the fit, the layout or the number of sides.
    """
    yield from sources.fetch_source(Path(source))
    color = ImageColor.getrgb(background)[:3]
    settings = ReadSettings(size, channels, color, fit, layout=layout, numbers=numbers, rate=rate)
    about = {
        "source": str(Path(source).absolute()),
        "medium": medium,
        "bits": bits,
        **asdict(settings),
        # A number may stand for any number of sides, and the completed size has them all.
        "size": size[:1] if size and len(set(size)) == 1 else size,
    }
    dataset_index = DatasetIndex(index, about, goes_on)
    with contextlib.closing(sources.open_source(Path(source), single=single)) as opened:
        before = dataset_index.listing() if goes_on else None
        listing = before or sources.list_samples(opened, medium)
        settings = yield from _complete_settings(settings, bits, opened, listing)
        bound = max_sample_bytes(listing, settings)
        private = any(reasons.public_name(e.name) != e.name for e in listing.candidates)
        if before is None and (private or keep is None or bound <= keep):
            dataset_index.remove()
            dataset_index = DatasetIndex(None, about)
        store = Store(cache, len(listing.candidates), keep, map_over)
        decoding = DecodingPass(DecodingTask(opened, listing.medium, settings), store, workers)
        yield from decoding.run(listing, dataset_index, strict)
        reading, tally = decoding.task, decoding.tally
        if not store.shape:
            raise _no_samples_error(source, listing, tally)
        stream = Stream(
            source=str(source),
            medium=reading.medium,
            settings=reading.settings,
            entries=tally.entries,
            digests=np.frombuffer(b"".join(tally.digests), np.uint8).reshape(-1, 16),
            sample_shape=store.shape,
            dtype=store.dtype,
            single=single,
            kept_samples=store.finish(),
            workers=workers,
            strict=strict,
        )
        stored = yield from store_stream(stream, store)
    images = _describe_samples(stream, stored, listing, tally, transform)
    summary = images.summary
    unsized = sizable and settings.size is None
    if unsized and (notice := summary.describe_resizing(stored.shape[2:], fit)):
        yield Notice(f"{notice}; {summary.suggest_size(stored.shape[2:])}")
    deep = [mode for mode in tally.modes if mode[:1] == "I" or mode[-3:] == ";16"]
    lost = sum(tally.modes[mode] for mode in deep)
    if sizable and settings.numbers is None and stored.dtype == np.uint8 and lost:
        count = f"{lost:,} of {summary.format_samples(summary.usable)}"
        yield Notice(f"{count} have 16 bits and are reduced to 8. To keep 16, pass --bits 16")
    yield from _warnings(summary, settings)
    return images


def _complete_settings(
    settings: ReadSettings, bits: int | None, source: Source, listing: sources.Listing
) -> Work[ReadSettings]:
    """Complete a request by the limits of the medium and by some of the files.

    Raises:
        UsageError: the medium does not support the request.
    """
    kind, every = media.MEDIA[listing.medium], listing.candidates
    if source.layout in kind.layouts:  # else the source has no files of its kind
        settings = replace(settings, layout=settings.layout or source.layout)
    with translate_errors():
        settings = kind.resolve_settings(settings, bits)
        kind.prepare()
        files = sources.read_subset(source, every, LOOKED_AT)
        settings, notice = kind.settled(settings, files)
    if notice and every:
        yield Notice(notice)
    return settings


def max_sample_bytes(listing: sources.Listing, settings: ReadSettings) -> int:
    """Return a bound of the samples' bytes, which compressed arrays and pages can exceed.

    It counts the requested channels and type, by default four channels of bytes, or the size of the
    files.
    """
    kind, size = media.MEDIA[listing.medium], settings.size
    usual = kind.sides.get(2, 0)
    pixel_bytes = np.dtype(settings.numbers or "uint8").itemsize * (settings.channels or 4)
    bound = len(listing.candidates) * pixel_bytes * math.prod(size or (usual, usual))
    if not kind.unpacked:
        return bound
    return max(bound, sum(entry.size for entry in listing.candidates))


def _no_samples_error(source: str | Path, listing: sources.Listing, tally: Tally) -> DataError:
    """Return an error that lists the other files, with advice for the most frequent kind."""
    many = media.MEDIA[listing.medium].many
    unread = sorted(listing.unread.items(), key=lambda item: -item[1])
    counts = [f"{count:,} {extension}" for extension, count in unread]
    if unnamed := listing.others - sum(listing.unread.values()):
        counts.append(plural(unnamed, "file of another kind", "files of other kinds"))
    hint = media.advice()[unread[0][0]] if unread else media.advice_for(str(source))
    other_files = f" ({', '.join(counts)})" if counts else ""
    usable, skips = ("usable ", f": {skip_counts(tally.skipped)}") if tally.skipped else ("", "")
    text = f"no {usable}{many} in {show(source)}{skips}{other_files}"
    return DataError(text, hint[:1].upper() + hint[1:], code="data_empty", path=source)


def _warnings(summary: Summary, settings: ReadSettings) -> Iterator[Notice]:
    """Yield a warning for each kind of flaw in usable samples."""
    contrast = "black" if sum(settings.background) > 3 * 127 else "white"
    for reason, count_and_names in summary.remarks.items():
        if reason in (reasons.DEPTH, reasons.DEPTH_TIFF) and settings.numbers == "uint8":
            continue
        (line,) = remark_lines({reason: count_and_names}, summary.format_samples(summary.usable))
        todo = f"; try --background {contrast}" if reason == reasons.BLANK else ""
        yield Notice(f"{line}{todo}", warning=True)


def _describe_samples(
    stream: Stream, stored: Array, listing: sources.Listing, tally: Tally, transform: str | None
) -> Dataset:
    """Return the samples of a stream, which `stored` holds, with their classes and a summary."""
    names = tuple(entry.name for entry in stream.entries)
    labels, class_names = sources.find_classes(names, listing.candidates)
    counts = Counter(labels)
    summary = Summary(
        source=show(stream.source),
        found=len(listing.candidates),
        usable=len(stream),
        channels=stored.shape[1],
        sizes=dict(tally.sizes),
        modes=dict(tally.modes),
        greyed=tally.color if stored.shape[1] == 1 else 0,
        medium=listing.medium,
        layout=tally.layout or "",
        classes={name: counts[k] for k, name in enumerate(class_names)},
        unlabelled=counts[-1],
        skipped=tally.skipped,
        others=listing.others,
        unread=dict(listing.unread),
        remarks=tally.remarks,
        tables=listing.tables,
        origin=listing.origin,
        quantities=listing.quantities,
    )
    return Dataset(
        stored=stored,
        labels=np.array(labels, np.int64),
        class_names=class_names,
        names=names,
        medium=listing.medium,
        layout=tally.layout,
        transform=transform,
        rate=stream.settings.rate,
        digests=stream.digests,
        summary=summary,
    )
