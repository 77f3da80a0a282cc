"""On-disk index of the files of a source, so that a large data set is scanned only once.

The index has one line of JSON for the header, one per file in the order of the listing, and one for
the listing itself once every file has been read. An interrupted scan resumes where it ended.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import PIL

from diffuse_cli import system
from diffuse_cli.data.decoding_threads import DecodedSample, Result, SkippedFile
from diffuse_cli.data.sources.entries import Entry, Listing
from diffuse_cli.data.store import make_blank
from diffuse_cli.media import Read
from diffuse_cli.system import files

FORMAT = 1

SECONDS = 1.0
"""Seconds between writes, and so the work that is repeated after a kill."""


class DatasetIndex:
    """Index of a source in the file at `path`.

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
                tables = tuple(line["tables"])
                return Listing(**{**line, "candidates": tuple(entries), "tables": tables})
            entries.append(Entry(*line[0]))
        return None

    def results(
        self, listing: Listing, decode: Callable[[tuple[Entry, ...]], Iterator[Result]]
    ) -> Iterator[tuple[Result, bool]]:
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


def _result_to_json(result: Result) -> list[Any]:
    """Return a result as JSON values, without its file and its values."""
    if isinstance(result, SkippedFile):
        return [result.reason]
    values, digest, *facts = result.read
    return [digest.hex(), values.shape, values.dtype.str, *facts]


def _result_from_json(entry: Entry, fields: Sequence[Any]) -> Result:
    """Return the result of a file from the JSON of `_result_to_json`, with zeros as its values."""
    if len(fields) == 1:
        return SkippedFile(entry, fields[0])
    digest, shape, dtype, mode, size, channels, remarks, layout = fields
    values = make_blank(tuple(shape), dtype)
    facts = mode, tuple(size), channels, tuple(remarks), layout
    return DecodedSample(entry, Read(values, bytes.fromhex(digest), *facts))


def _append_results(file: IO[bytes], results: Iterator[Result]) -> Iterator[Result]:
    """Yield the results, and append them to the index at most `SECONDS` later."""
    lines, last = list[Any](), time.monotonic()
    for result in results:
        lines.append([result.entry, *_result_to_json(result)])
        if time.monotonic() - last > SECONDS:
            _write_lines(file, lines)
            lines, last = [], time.monotonic()
        yield result
    _write_lines(file, lines)


def _write_lines(file: IO[bytes], values: Sequence[Any]) -> None:
    with files.operation("append", Path(file.name)):
        file.write("".join(json.dumps(value) + "\n" for value in values).encode())
        file.flush()
