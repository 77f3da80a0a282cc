"""Decode every file of a listing into a store, and keep an index of the results on disk.

The shape and type of the store follow from the samples.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL

from diffuse_cli import system
from diffuse_cli.data.decoding_threads import DecodedFile, DecodingTask, decode_all, decode_files
from diffuse_cli.data.sources import Listing
from diffuse_cli.data.sources.base import Entry
from diffuse_cli.data.store import SECONDS_BETWEEN_EVENTS, Store, make_blank
from diffuse_cli.data.summary import NAMED
from diffuse_cli.media import MEDIA, Array, Medium, Read, ReadSettings, Size
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system import Progress, Work, files

FORMAT = 1

WRITE_SECONDS = 1.0
"""Seconds between writes, and so the work that is repeated after a kill."""

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


def _count_reason(counts: Reasons, reason: str, entry: Entry) -> None:
    count, names = counts.get(reason, (0, ()))
    name = reasons.public_name(entry.name)
    is_named = count < NAMED and name not in names
    counts[reason] = count + 1, (*names, name) if is_named else names


class DecodingPass:
    """Pass over a listing that decodes every file into a store.

    The store starts again when a sample does not fit its shape. If the request leaves sizes open,
    the samples complete it, and files that were decoded before are decoded again: a resumed run
    asks for the completed request.

    Args:
        workers: threads, None for one per core.

    Attributes:
        task: the settings to read the samples again, complete after the pass.
        tally: the counts for the summary.
    """

    def __init__(self, task: DecodingTask, store: Store, workers: int | None) -> None:
        self.task, self.tally = task, Tally()
        self._store, self._workers, self._kind = store, workers, MEDIA[task.medium]

    def run(self, listing: Listing, index: DatasetIndex, strict: bool) -> Work[None]:
        """Decode every file that is not in the index.

        Raises:
            DataError: with `strict`, a file cannot be used.
            OutputError: the store or the index cannot be written.
        """
        text, total, last = f"reading {self._kind.many}", len(listing.candidates), time.monotonic()
        yield Progress(text, 0, total)
        try:
            for count, (result, from_index) in enumerate(index.results(listing, self._decode), 1):
                read, reason = self._fit_to_store(result, from_index)
                if read is not None:
                    self.tally.add(result.entry, read)
                    self._append(result.entry, read, from_index)
                elif strict:
                    raise _refuse_file(self.task.source.path, result.entry, reason)
                else:
                    _count_reason(self.tally.skipped, reason, result.entry)
                if time.monotonic() - last > SECONDS_BETWEEN_EVENTS:
                    last = time.monotonic()
                    yield Progress(text, count, total)
            yield Progress(text, total, total)
        except BaseException as error:
            self._store.abort(error)
            raise

    def _decode(self, entries: tuple[Entry, ...]) -> Iterator[DecodedFile]:
        return decode_all(lambda: self.task, entries, self._workers)

    def _fit_to_store(self, result: DecodedFile, from_index: bool) -> tuple[Read | None, str]:
        """Return a sample that the store can take, or None and the reason."""
        _, read, reason = result if from_index else self._apply_settings(result)
        if read is None:
            return None, reason
        read = _cut(self._store, read, self.task.settings, self._kind)
        return (read, "") if _can_store(self._store, read, self._kind) else (None, reasons.SHAPE)

    def _apply_settings(self, result: DecodedFile) -> DecodedFile:
        """Return a file by the settings of now, decoded again if they changed since."""
        if result.read is None or _fits(result.read.values, self.task.settings):
            return result
        return decode_files(self.task, [result.entry])[0]

    def _append(self, entry: Entry, read: Read, from_index: bool) -> None:
        """Append a sample to the store, and update what all samples share if it differs."""
        store, settings, values = self._store, self.task.settings, read.values
        if from_index:  # its values are zeros, so only shape and type count
            values = make_blank(values.shape, settings.numbers or values.dtype)
        common, shape, dtype = _resolve_common(settings, store, values, self._kind)
        earlier = None
        if common is not settings:
            self.task = replace(self.task, settings=common)
            entries = self.tally.entries[: store.count if store.open else 0]
            earlier = (file.read and file.read.values for file in self._decode(tuple(entries)))
        if (store.shape, store.dtype) != (shape, dtype):
            store.start(shape, dtype, earlier)
        final = None
        if store.open and not from_index:
            final = self._apply_settings(DecodedFile(entry, read)).read
        store.append(final and final.values)


def _refuse_file(source: Path, entry: Entry, reason: str) -> system.DataError:
    """Return the error of a file that cannot be used, for --strict."""
    hint = "Remove it, or leave --strict out to skip such files"
    text = f"{system.show(entry.name)}: {reason}"
    code = reasons.ERROR_CODES.get(reason, reasons.UNSUPPORTED)
    return system.DataError(text, hint, code=code, path=source / entry.name)


def _fits(values: Array, settings: ReadSettings) -> bool:
    """Whether a decoded sample has the size, channels and type of a request."""
    if settings.numbers and settings.numbers not in (values.dtype, values.dtype.name):
        return False
    return values.shape[1:] == (settings.size or values.shape[1:]) and (
        settings.channels is None or values.shape[0] in (1, settings.channels)
    )


def _cut(store: Store, read: Read, settings: ReadSettings, kind: Medium) -> Read:
    """Return a sample cut to the size of the samples that are there, if it is larger.

    A resumed run asks for this size, so the first run must have the same samples. An index keeps
    the shape before.
    """
    shape = read.values.shape
    if not store.shape or kind.mixed or store.shape[0] != shape[0] or store.shape == shape:
        return read
    with contextlib.suppress(reasons.Unusable):
        sized = replace(settings, size=store.shape[1:])
        return read._replace(values=kind.fit(read.values, sized))
    return read


def _can_store(store: Store, read: Read, kind: Medium) -> bool:
    """Whether a sample can be stored next to the samples that are there."""
    if not store.shape or not kind.mixed:
        return store.shape in ((), read.values.shape)
    return read.layout not in kind.alike or store.shape[0] == read.values.shape[0]


def _resolve_common(
    settings: ReadSettings, store: Store, values: Array, kind: Medium
) -> tuple[ReadSettings, Size, np.dtype[Any]]:
    """Return the request, the shape and the type that stored samples share with another sample.

    Samples of several sizes get the medium's size. If the medium has several bit depths, the type
    with the fewest bits wins. Otherwise the type is one that holds the values of all samples.
    """
    (channels, *sides), dtype, changed = values.shape, values.dtype, dict[str, Any]()
    size = settings.size
    if not store.shape:
        if size is not None and len(size) != len(sides):  # equal sides, in any number of dimensions
            settings = replace(settings, size=tuple(sides))
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
        settings = replace(settings, **changed)
    return settings, (max_channels, *(size or sides)), dtype


class DatasetIndex:
    """Index of a source in the file at `path`, so that a large data set is scanned only once.

    It has one line of JSON for the header, one per file in the order of the listing, and one for
    the listing itself once every file has been read. An interrupted scan resumes where it ended.

    An index that is damaged, or was written for another source, other options or another version of
    `diffuse`, is ignored.

    Args:
        path: the index file, or None to keep no index.
        about: the source and the options that decide the result, by name.
        goes_on: accept an index whose open options have been decided since it was started.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], goes_on: bool = False) -> None:
        self.path, self._goes_on = path, goes_on
        versions = {"diffuse": system.__version__, "pillow": PIL.__version__}
        self._header = {"format": FORMAT, **versions, **json.loads(json.dumps(about))}

    def listing(self) -> Listing | None:
        """Return the listing of a complete index, or None if it is incomplete."""
        entries = list[Entry]()
        for line, _ in self._lines():
            if isinstance(line, dict):
                lists = {name: tuple(line.get(name, ())) for name in ("tables", "quantities")}
                return Listing(**{**line, **lists, "candidates": tuple(entries)})
            entries.append(Entry(*line[0]))
        return None

    def results(
        self, listing: Listing, decode: Callable[[tuple[Entry, ...]], Iterator[DecodedFile]]
    ) -> Iterator[tuple[DecodedFile, bool]]:
        """Yield the result of each file in order, and whether it comes from the index.

        Samples from the index have the right shape and type, but their values are zeros.

        Args:
            decode: decodes the files that are not in the index.

        Raises:
            OutputError: the index cannot be written.
        """
        count, end, complete = 0, 0, False
        for line, place in self._lines():
            if isinstance(line, dict):
                complete = count == len(listing.candidates)
                break
            entry = Entry(*line[0])
            if count == len(listing.candidates) or entry != listing.candidates[count]:
                break
            yield _result_from_json(entry, line[1:]), True
            count, end = count + 1, place
        decoded_results = decode(listing.candidates[count:])
        if complete or self.path is None:
            yield from ((result, False) for result in decoded_results)
            return
        with files.report_errors(self.path):
            files.make_folder(self.path.parent)
            with self.path.open("r+b" if end else "wb") as file:
                file.truncate(end)
                file.seek(end)
                if not end:
                    _write_lines(file, [self._header])
                yield from ((result, False) for result in _append_results(file, decoded_results))
                footer = replace(listing, candidates=(), unread=dict(listing.unread))
                _write_lines(file, [asdict(footer)])

    def remove(self) -> None:
        """Delete the index file."""
        if self.path is not None:
            files.remove(self.path)

    def _lines(self) -> Iterator[tuple[Any, int]]:
        """Yield each complete line after the header, with the offset of its end in the file."""
        if self.path is None or not self.path.is_file():
            return
        with contextlib.suppress(OSError, ValueError), self.path.open("rb") as file:
            if not self._fits(json.loads(first := file.readline())):
                return
            place = len(first)
            for line in file:
                place += len(line)
                if not line.endswith(b"\n"):
                    return
                yield json.loads(line), place

    def _fits(self, header: dict[str, Any]) -> bool:
        if not self._goes_on:
            return header == self._header
        expected = self._header
        same = (header[k] == expected[k] or header[k] is None for k in expected)
        return header.keys() == expected.keys() and all(same)


def _result_to_json(result: DecodedFile) -> list[Any]:
    """Return a result as JSON values, without its file and its values."""
    if result.read is None:
        return [result.reason]
    values, digest, *facts = result.read
    return [digest.hex(), values.shape, values.dtype.str, *facts]


def _result_from_json(entry: Entry, fields: Sequence[Any]) -> DecodedFile:
    """Return the result of a file from the JSON of `_result_to_json`, with zeros as its values."""
    if len(fields) == 1:
        return DecodedFile(entry, None, fields[0])
    digest, shape, dtype, mode, size, channels, remarks, layout = fields
    values = make_blank(tuple(shape), dtype)
    facts = mode, tuple(size), channels, tuple(remarks), layout
    return DecodedFile(entry, Read(values, bytes.fromhex(digest), *facts))


def _append_results(file: IO[bytes], results: Iterator[DecodedFile]) -> Iterator[DecodedFile]:
    """Yield the results, and append them to the index at most `WRITE_SECONDS` later."""
    lines, last = list[Any](), time.monotonic()
    for result in results:
        lines.append([result.entry, *_result_to_json(result)])
        if time.monotonic() - last > WRITE_SECONDS:
            _write_lines(file, lines)
            lines, last = [], time.monotonic()
        yield result
    _write_lines(file, lines)


def _write_lines(file: IO[bytes], values: Sequence[Any]) -> None:
    with files.operation("append", Path(file.name)):
        file.write("".join(json.dumps(value) + "\n" for value in values).encode())
        file.flush()
