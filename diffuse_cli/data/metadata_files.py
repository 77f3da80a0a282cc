"""Metadata tables of samples, as in Hugging Face's image folders: `metadata.csv`, `.jsonl`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import posixpath
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffuse_cli.config.parsers import read_vectors, to_plain
from diffuse_cli.data.samples import match_names
from diffuse_cli.data.sources import base, find_source_kind, open_source
from diffuse_cli.data.summary import format_names
from diffuse_cli.media import Array
from diffuse_cli.system import DataError, plural, shorten, show

FILE_NAME = "file_name"
"""Column with the path of a row's sample, relative to the folder of the table."""

LARGEST_TABLE = 256 * 2**20

SHORT = 8
"""The most numbers of a list that can be a label."""

VECTOR, VECTOR_HINT = "vector", "Pass the file of vectors with --condition-on FILE.npz"
"""Column of the vectors of a file, and advice where it is missing."""

ROWS = ("in-memory", "npy", "npz-batch")
"""Sources of samples in the order of an array."""


class Cell(NamedTuple):
    """Cell of a table: its text, its table and line, and its number or vector if it is one."""

    text: str
    number: float | None
    table: str
    line: int
    vector: Array | None = None

    @property
    def place(self) -> str:
        """The table and line, for a message."""
        return f"{self.table}, line {self.line:,}"


Row = dict[str, Cell | None]


@dataclass(frozen=True, eq=False)
class Cells:
    """Metadata of N samples from the tables of a source.

    Attributes:
        tables: the escaped names of the tables.
        columns: the cell of each sample, by column; None for a missing cell.
        lines: a sentence about samples without a row, and one about rows without a sample.
    """

    tables: tuple[str, ...]
    columns: Mapping[str, Sequence[Cell | None]]
    lines: tuple[str, ...] = ()

    @property
    def tables_text(self) -> str:
        """The tables, for a message."""
        more = f" and {len(self.tables) - 1:,} more" if len(self.tables) > 1 else ""
        return self.tables[0] + more

    @property
    def names(self) -> str:
        """The first columns, for a message."""
        return ", ".join(shorten(n, 50) for n in [*self.columns][:20]) or "none"


def read_cells(
    path: str | Path,
    names: Sequence[str],
    selection: Collection[str] | None = None,
    vectors: str | None = None,
) -> Cells:
    """Read the metadata of named samples from the tables in a folder or zip file.

    Args:
        selection: columns whose cells are kept; None for all.
        vectors: a file with the cells of the column `VECTOR`.

    Raises:
        DataError: there is no table, one is broken, or none has a row for these samples, or a
            sample has no vector.
    """
    if vectors is not None:
        file, in_tables = _read_vector_cells(path, names, vectors), {*(selection or ())} - {VECTOR}
        cells = read_cells(path, names, in_tables) if in_tables else Cells((), {})
        every = {**cells.columns, **file.columns}
        return Cells(cells.tables + file.tables, every, cells.lines + file.lines)
    with contextlib.closing(open_source(Path(path))) as source:
        entries = [e for e in source.entries() if e.name.rpartition("/")[2] in base.TABLES]
        if not entries and not source.tables:
            text = f"no {' or '.join(base.TABLES)} in {show(path)}"
            hint = f"Put one next to the images, with a column {FILE_NAME}"
            hint = VECTOR_HINT if selection and VECTOR in selection else hint
            raise DataError(text, hint, code="metadata_unreadable", path=path)
        entries = sorted(entries, key=lambda e: base.encode_name(e.name))
        rows: dict[str, base.MetadataRow] = {}
        columns: dict[str, None] = {}
        for row in _read_rows(source, entries, selection):
            columns.update(dict.fromkeys(row.values))
            if row.name in rows:
                raise _duplicate_error(row, rows[row.name], path)
            values = {k: v for k, v in row.values.items() if selection is None or k in selection}
            rows[row.name] = row._replace(values=values)
        tables = (*(show(e.name) for e in entries), *source.tables)
    return _match_rows(tables, rows, columns, names)


def _read_vector_cells(path: str | Path, names: Sequence[str], file: str) -> Cells:
    """Read the vector of each sample by its name, or by its row if the data is an array."""
    table, code = show(Path(file).name), "metadata_mismatch"
    try:
        vector_names, vectors = read_vectors(file)
    except ValueError as error:
        text = f"--condition-on {show(file)}: {error}"
        raise DataError(text, code="metadata_unreadable", path=file) from error
    if not vector_names:
        with contextlib.closing(open_source(Path(path))) as source:
            vector_names = tuple(entry.name for entry in source.entries())
        if find_source_kind(Path(path)) not in ROWS or len(vector_names) != len(vectors):
            text = f"{table} has {len(vectors):,} rows without names, and {show(path)} is not an "
            text += "array of as many samples"
            hint = "Save a .npz file with the vector of each file name"
            raise DataError(text, hint, code=code, path=file)
    if len({*vector_names}) < len(vector_names):
        name = Counter(vector_names).most_common(1)[0][0]
        text = f"{table} has several vectors of {shorten(name)}"
        raise DataError(text, "Remove all but one", code="metadata_unreadable", path=file)
    rows = match_names(names, vector_names)
    if unmatched := [name for name, row in zip(names, rows, strict=True) if row < 0]:
        examples = format_names(unmatched, len(unmatched))
        text = f"{plural(len(unmatched), 'image')} without a vector in {table}: {examples}"
        example = shorten(vector_names[0])
        hint = f"Name each vector as its image. The first vector is named {example}"
        raise DataError(text, hint, code=code, path=file)
    lines, unused = [], np.setdiff1d(np.arange(len(vector_names)), rows)
    if len(unused):
        examples = format_names([vector_names[k] for k in unused], len(unused))
        lines.append(f"{plural(len(unused), 'vector')} of {table} without an image: {examples}")
    return Cells((table,), {VECTOR: [_cell(vectors[k], table, k + 1) for k in rows]}, tuple(lines))


def _read_rows(
    source: base.Source, entries: Iterable[base.Entry], selection: Collection[str] | None
) -> Iterator[base.MetadataRow]:
    """Yield every row, with cells as its values.

    Raises:
        DataError: a table is broken.
    """
    for entry in entries:
        table, (folder, _, file_name) = show(entry.name), entry.name.rpartition("/")
        try:
            for line, values in FORMATS[file_name.rpartition(".")[2]](_text(entry, source), table):
                named = values.pop(FILE_NAME, None)
                if named is None:
                    raise DataError(f"{table}, line {line:,}: no {FILE_NAME}")
                name = posixpath.normpath(posixpath.join(folder, named.text))
                yield base.MetadataRow(table, line, name, values)
        except DataError as error:
            error.code = "metadata_unreadable"
            error.path = str(source.path / entry.name)
            raise
    for row in source.read_rows(selection):
        cells = {k: _cell(v, row.table, row.line) for k, v in row.values.items()}
        yield row._replace(values=cells)


def _duplicate_error(
    row: base.MetadataRow, before: base.MetadataRow, path: str | Path
) -> DataError:
    place = f"line {before.line:,}" + (f" of {before.table}" if before.table != row.table else "")
    text = f"{row.table}, line {row.line:,}: {shorten(row.name)} already has a row, in {place}"
    return DataError(text, "Remove one of the two rows", code="metadata_unreadable", path=path)


def _match_rows(
    tables: tuple[str, ...],
    rows: Mapping[str, base.MetadataRow],
    columns: Mapping[str, None],
    names: Sequence[str],
) -> Cells:
    normalized = {unicodedata.normalize("NFC", name): row for name, row in rows.items()}
    matched = [
        rows.get(name) or normalized.get(unicodedata.normalize("NFC", name)) for name in names
    ]
    without = [name for name, row in zip(names, matched, strict=True) if row is None]
    used = {row.name for row in matched if row}
    unmatched = [name for name in rows if name not in used]
    sample_rows = [row.values if row else {} for row in matched]
    cells = Cells(tables, {column: [row.get(column) for row in sample_rows] for column in columns})
    where = cells.tables_text
    if len(without) == len(names):
        raise DataError(
            f"{where}: none of its {len(rows):,} rows names an image of the data set"
            + (f", for example {shorten(unmatched[0])}" if unmatched else ""),
            f"Add a row for each image, with its {FILE_NAME}, for example {shorten(names[0])}",
            code="metadata_mismatch",
        )
    lines = []
    if without:
        count = plural(len(without), "image")
        examples = format_names(without, len(without), shorten)
        lines.append(f"{count} without a row in {where}, so without a condition: {examples}")
    if unmatched:
        count = plural(len(unmatched), "row")
        examples = format_names(unmatched, len(unmatched), shorten)
        lines.append(f"{count} of {where} without an image: {examples}")
    return replace(cells, lines=tuple(lines))


def _text(entry: base.Entry, source: base.Source) -> str:
    """Read the text of a table.

    Raises:
        DataError: the table cannot be read, is too large or is not UTF-8.
    """
    data = source.read_table(entry, LARGEST_TABLE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = f"{show(entry.name)}, line {line:,}: not UTF-8"
        raise DataError(text, "Save the table as UTF-8") from None


def _csv(text: str, table: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a CSV file, each with its last line. Empty cells are missing values."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            line = reader.line_num
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_header(header, table)
            elif len(cells) != len(header):
                raise DataError(
                    f"{table}, line {line:,}: {plural(len(cells), 'cell')}, but "
                    f"{plural(len(header), 'column')}",
                    "Put cells that contain commas in quotes",
                )
            else:
                stripped = zip(header, map(str.strip, cells), strict=True)
                yield (
                    line,
                    {k: Cell(v, _number(v), table, line) if v else None for k, v in stripped},
                )
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num:,}: {error}") from None
    if header is None:
        raise DataError(f"{table} is empty", f"Add a header line, for example {FILE_NAME},age")


def _check_header(header: Sequence[str], table: str) -> None:
    listed = ", ".join(map(shorten, header[:20]))
    if FILE_NAME not in header:
        text = f"{table} has no column {FILE_NAME}, only {listed}"
        raise DataError(text, "Name it in the first line, and separate columns by commas")
    if len(set(header)) < len(header):
        raise DataError(f"{table} has two columns with the same name: {listed}")


def _number(text: str) -> float | None:
    """Return the number in a cell. NaN counts, as some programs write missing values so."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _jsonl(text: str, table: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file with a JSON object per line. Null is a missing value."""
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        try:
            values = json.loads(words)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "not JSON")
            raise DataError(f"{table}, line {line:,}: {reason}") from None
        if not isinstance(values, dict):
            raise DataError(f"{table}, line {line:,}: not an object in braces")
        yield line, {k: _cell(v, table, line) for k, v in values.items()}


def _cell(value: Any, table: str, line: int) -> Cell | None:
    if isinstance(value, np.ndarray) or _is_vector(value):
        vector = np.asarray(value)
        vector = vector.astype(np.result_type(vector, np.float32), copy=False)
        text = json.dumps(to_plain(value)) if len(value) <= SHORT else f"{len(value):,} numbers"
        return Cell(text, None, table, line, vector)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return Cell(value.strip(), None, table, line) if value.strip() else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # the same label, also in a column with missing values
        try:
            return Cell(json.dumps(value), float(value), table, line)
        except (OverflowError, ValueError):
            return Cell("a huge number", math.inf, table, line)
    return Cell(json.dumps(value), None, table, line)  # true or a list becomes a label


def _is_vector(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(type(entry) in (int, float) and abs(entry) <= sys.float_info.max for entry in value)


FORMATS: Mapping[str, Callable[[str, str], Iterator[tuple[int, Row]]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
}
"""Readers by the extension of a table: (text, name for messages) -> rows with their lines."""
