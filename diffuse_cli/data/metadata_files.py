"""Tables beside samples, as Hugging Face's image folders have them: `metadata.csv`, `.jsonl`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from diffuse_cli.data.sources import open_source
from diffuse_cli.data.sources.entries import TABLES, Entry, MetadataRow, Source, in_bytes
from diffuse_cli.data.summary import listed, plural
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import brief, show

FILE_NAME = "file_name"
"""The column that says which sample a row is about, by its path from the folder of the table."""

LARGEST_TABLE = 256 * 2**20


class Cell(NamedTuple):
    """What a table says of a sample in a column: its text, the number that it is, if it is one, and
    where that stands."""

    text: str
    number: float | None
    table: str
    line: int

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        return f"{self.table}, line {self.line:,}"


Row = dict[str, Cell | None]


@dataclass(frozen=True, eq=False)
class Cells:
    """What the tables of a source say of N samples.

    Attributes:
        tables: their names, escaped.
        columns: the cell of each sample, by column; None where there is none.
        lines: a sentence for samples without a row, and one for rows without a sample.
    """

    tables: tuple[str, ...]
    columns: Mapping[str, Sequence[Cell | None]]
    lines: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The tables, for a message."""
        more = f" and {len(self.tables) - 1:,} more" if len(self.tables) > 1 else ""
        return self.tables[0] + more

    @property
    def names(self) -> str:
        """The first columns, for a message."""
        return ", ".join(brief(n, 50) for n in [*self.columns][:20]) or "none"


def read_cells(
    path: str | Path, names: Sequence[str], wanted: Collection[str] | None = None
) -> Cells:
    """What the tables in a folder or zip file say of the samples of these names.

    Args:
        wanted: columns to keep the cells of; None for all.

    Raises:
        DataError: there is no table, one is broken, or none says anything of these samples.
    """
    with contextlib.closing(open_source(Path(path))) as source:
        found = [e for e in source.entries() if e.name.rpartition("/")[2] in TABLES]
        if not found and not source.tables:
            raise DataError(
                f"no {' or '.join(TABLES)} in {show(path)}",
                f"Put one beside the images, with a column {FILE_NAME}",
            )
        entries = sorted(found, key=lambda e: in_bytes(e.name))
        rows: dict[str, MetadataRow] = {}
        columns: dict[str, None] = {}
        for row in _told(source, entries, wanted):
            columns.update(dict.fromkeys(row.values))
            if row.name in rows:
                raise _second(row, rows[row.name])
            kept = {k: v for k, v in row.values.items() if wanted is None or k in wanted}
            rows[row.name] = row._replace(values=kept)
        tables = (*(show(e.name) for e in entries), *source.tables)
    return _matched(tables, rows, columns, names)


def _told(
    source: Source, entries: Iterable[Entry], wanted: Collection[str] | None
) -> Iterator[MetadataRow]:
    """Every row, with cells for values.

    Raises:
        DataError: a table is broken.
    """
    for entry in entries:
        table, (folder, _, base) = show(entry.name), entry.name.rpartition("/")
        for line, values in FORMATS[base.rpartition(".")[2]](_text(entry, source), table):
            named = values.pop(FILE_NAME, None)
            if named is None:
                raise DataError(f"{table}, line {line:,}: no {FILE_NAME}")
            name = posixpath.normpath(posixpath.join(folder, named.text))
            yield MetadataRow(table, line, name, values)
    for row in source.told(wanted):
        cells = {k: _cell(v, row.table, row.line) for k, v in row.values.items()}
        yield row._replace(values=cells)


def _second(row: MetadataRow, before: MetadataRow) -> DataError:
    there = f"line {before.line:,}" + (f" of {before.table}" if before.table != row.table else "")
    text = f"{row.table}, line {row.line:,}: {brief(row.name)} has a row already, in {there}"
    return DataError(text, "Leave one of the two")


def _matched(
    tables: tuple[str, ...],
    rows: Mapping[str, MetadataRow],
    columns: Mapping[str, None],
    names: Sequence[str],
) -> Cells:
    own = [rows[name].values if name in rows else {} for name in names]
    known = set(names)
    without = [name for name in names if name not in rows]
    lone = [name for name in rows if name not in known]
    cells = Cells(tables, {column: [row.get(column) for row in own] for column in columns})
    where = cells.where
    if len(without) == len(names):
        raise DataError(
            f"{where}: none of its {len(rows):,} rows is about an image that was read"
            + (f", such as {brief(lone[0])}" if lone else ""),
            f"Give each image a row with its {FILE_NAME}, such as {brief(names[0])}",
        )
    lines = []
    if without:
        count, few = plural(len(without), "image"), listed(without, len(without), brief)
        lines.append(f"{count} without a row in {where}, told nothing: {few}")
    if lone:
        count, few = plural(len(lone), "row"), listed(lone, len(lone), brief)
        lines.append(f"{count} of {where} without an image: {few}")
    return replace(cells, lines=tuple(lines))


# -- the two formats ------------------------------------------------------------------------------


def _text(entry: Entry, source: Source) -> str:
    """The text of a table.

    Raises:
        DataError: it cannot be read, is too large or not UTF-8.
    """
    data = source.read_table(entry, LARGEST_TABLE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = f"{show(entry.name)}, line {line:,}: not UTF-8"
        raise DataError(text, "Save the table as UTF-8") from None


def _csv(text: str, table: str) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file, each with the line that it ends on. Empty cells are missing."""
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
                    f"{table}, line {line:,}: {plural(len(cells), 'cell')}, and "
                    f"{plural(len(header), 'column')}",
                    "Put cells with commas into quotes",
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
        raise DataError(f"{table} is empty", f"Give it a line of columns, such as {FILE_NAME},age")


def _check_header(header: Sequence[str], table: str) -> None:
    listed = ", ".join(map(brief, header[:20]))
    if FILE_NAME not in header:
        raise DataError(f"{table} has no column {FILE_NAME}, but {listed}", "Separate by commas")
    if len(set(header)) < len(header):
        raise DataError(f"{table} has two columns of one name: {listed}")


def _number(text: str) -> float | None:
    """The number that a cell is; not-a-number, as some programs write what is missing, is one."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _jsonl(text: str, table: str) -> Iterator[tuple[int, Row]]:
    """The rows of a file of JSON objects, one a line. Null is missing."""
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
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return Cell(value.strip(), None, table, line) if value.strip() else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return Cell(json.dumps(value), float(value), table, line)
        except (OverflowError, ValueError):
            return Cell("a huge number", math.inf, table, line)
    return Cell(json.dumps(value), None, table, line)  # true, or a list: a label that is seldom one


FORMATS: Mapping[str, Callable[[str, str], Iterator[tuple[int, Row]]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
}
"""Readers by the extension of a table: (text, name for messages) -> rows with their lines."""
