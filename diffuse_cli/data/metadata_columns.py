"""Metadata columns that a model is conditioned on: codes of table cells and of `--on` values."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config.parsers import VECTOR_FILES
from diffuse_cli.core import LabelColumn, MetadataTable, NumberColumn, VectorColumn, conditions
from diffuse_cli.core.registry import closest_name
from diffuse_cli.core.settings import digits
from diffuse_cli.data.metadata_files import VECTOR, VECTOR_HINT, Cell, Cells
from diffuse_cli.data.samples import NOISE
from diffuse_cli.data.summary import format_names
from diffuse_cli.media import Indices
from diffuse_cli.system import DataError, UsageError, lookup, plural, shorten

Rows = npt.NDArray[np.float32]

KINDS = ("number", "label")
"""Kinds that you can append to a column's name after a colon if its cells do not show its kind."""

ALMOST = 0.9
"""Fraction of numeric cells above which a column is probably meant to be numeric, and of different
labels above which each has too few images."""

LARGEST_ENTRY = float(np.finfo(np.float32).max)
"""The largest entry of a vector."""

FEWEST_LABELED = 20
"""The fewest labeled images whose labels must repeat."""


def examples(table: MetadataTable | None) -> dict[str, float | str]:
    """Return a value of each column of numbers or labels in the training data, by its name."""
    return {
        c.name: c.low if isinstance(c, NumberColumn) else c.values[0]
        for c in (table.columns if table else ())
        if not isinstance(c, VectorColumn)
    }


def split_vector_file(columns: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Return the columns of --condition-on, with a name for a file of vectors, and the file."""
    file = next((c for c in columns if c.endswith(VECTOR_FILES)), None)
    return tuple(VECTOR if c == file else c for c in columns), file


def check_vector_file(file: str | None, tables: Sequence[MetadataTable | None]) -> None:
    """Refuse a file of vectors where no model has a column of them."""
    if file and not any(table and table.vector for table in tables):
        text = "--condition-on: the model was trained without vectors"
        raise UsageError(text, "Leave it out", code="option_unsuited")


def parse_column(text: str) -> tuple[str, str]:
    """Split `site:label` into the name of a column and its kind, empty if it has none."""
    name, colon, kind = text.rpartition(":")
    return (name, kind) if colon and kind in KINDS else (text, "")


def parse_column_names(columns: Sequence[str]) -> list[str]:
    """Return the names of the columns of --condition-on.

    Raises:
        UsageError: there are too many columns, or one is repeated.
    """
    names = [parse_column(one)[0] for one in columns]
    if len(set(names)) < len(names):
        text = "--condition-on names a column twice"
        raise UsageError(text, "Name it once", code="invalid_value")
    if len(names) > conditions.MOST_COLUMNS:
        raise UsageError(
            f"--condition-on: at most {conditions.MOST_COLUMNS} columns, not {len(names):,}",
            code="invalid_value",
        )
    return names


def make_table(columns: Sequence[str], cells: Cells, train: Indices) -> MetadataTable:
    """Return the metadata table of a training run, from the training samples.

    Args:
        columns: columns, some with their kind.
        train: indices of the training samples.

    Raises:
        UsageError: a column does not exist.
        DataError: a cell is not of its column's kind, or a column has only one value.
    """
    return MetadataTable(columns=tuple(_column(*parse_column(c), cells, train) for c in columns))


def _column(name: str, kind: str, cells: Cells, train: Indices) -> conditions.Column:
    every = cells.columns.get(name)
    if every is None:
        closest = closest_name(name, cells.columns)
        raise UsageError(
            f"--condition-on {shorten(name)}: {cells.tables_text} has no such column, only "
            f"{cells.names}",
            f"Did you mean '{shorten(closest)}'?" if closest else "Name one of them",
            code="unknown_name",
        )
    filled = [cell for cell in every if cell is not None]
    texts = [cell for cell in filled if cell.number is None]
    training_cells = [cell for k in train if (cell := every[k]) is not None]
    missing = 1 - len(training_cells) / max(1, len(train))
    if kind == "number" and texts:
        text = f"{texts[0].place}: {shorten(name)} is {shorten(texts[0].text)!r}, not a number"
        hint = "Leave the cell empty if the value is missing"
        raise DataError(text, hint, code="metadata_mismatch")
    if not kind and any(cell.vector is not None for cell in filled):
        return _vectors(name, filled, training_cells, missing)
    if kind == "label" or texts:
        return _labels(name, kind, training_cells, texts, len(filled), missing)
    return _number(name, filled, training_cells, len(train))


def _number(name: str, filled: Sequence[Cell], cells: Sequence[Cell], train: int) -> NumberColumn:
    for cell in filled:
        if cell.number is not None and math.isinf(cell.number):
            text = f"{cell.place}: {shorten(name)} is {shorten(cell.text)}, not finite"
            raise DataError(text, code="metadata_mismatch")
    values = [float(n) for cell in cells if (n := cell.number) is not None and not math.isnan(n)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    # Sums that do not depend on the order of samples.
    mean = math.fsum(value / len(values) for value in values)
    max_deviation = max((abs(value - mean) for value in values), default=0.0)
    if low == high or max_deviation < sys.float_info.min:
        raise _constant_error(name, digits(values[0]) if values else "")
    if math.isinf(max_deviation):
        text = f"--condition-on {shorten(name)}: the range {low:g} to {high:g} is too wide"
        raise DataError(text, "Leave the column out", code="option_unsuited")
    variance = math.fsum(((value - mean) / max_deviation) ** 2 / len(values) for value in values)
    return NumberColumn(
        name=name,
        mean=mean,
        deviation=max_deviation * math.sqrt(variance),
        low=low,
        high=high,
        missing=1 - len(values) / train,
    )


def _vectors(
    name: str, filled: Sequence[Cell], cells: Sequence[Cell], missing: float
) -> VectorColumn:
    size = next(len(cell.vector) for cell in filled if cell.vector is not None)
    if size > conditions.MOST_ENTRIES:
        text = f"--condition-on {shorten(name)}: vectors of {size:,} numbers"
        hint = f"Use at most {conditions.MOST_ENTRIES:,}"
        raise DataError(text, hint, code="option_unsuited")
    if not cells:
        raise _constant_error(name, "")
    for cell in filled:
        _read_vector(name, cell, size)
    vectors, count = np.array([cell.vector for cell in cells]), len(cells)
    # Sums that do not depend on the order of samples.
    mean = np.array([math.fsum(entries.tolist()) / count for entries in vectors.T])
    squares = np.square(vectors - mean).T
    deviation = np.sqrt([math.fsum(entries.tolist()) / count for entries in squares])
    deviation[deviation <= NOISE * np.abs(mean)] = 0
    if not deviation.any():
        raise _constant_error(name, "the same vector")
    scale = {"mean": tuple(mean.tolist()), "deviation": tuple(deviation.tolist())}
    return VectorColumn(name=name, missing=missing, **scale)


def _read_vector(name: str, cell: Cell, size: int) -> tuple[float, ...]:
    """Return the vector in a cell, or refuse a cell that has not `size` finite numbers."""
    vector = cell.vector
    if vector is None or len(vector) != size or not (np.abs(vector) <= LARGEST_ENTRY).all():
        kind = "not finite" if vector is not None and len(vector) == size else shorten(cell.text)
        text = f"{cell.place}: {shorten(name)} is {kind}, not a vector of {size:,} numbers"
        hint = "Leave the cell empty if the vector is missing"
        raise DataError(text, hint, code="metadata_mismatch")
    return tuple(vector.tolist())


def _labels(
    name: str, kind: str, cells: Sequence[Cell], texts: Sequence[Cell], filled: int, missing: float
) -> LabelColumn:
    if not kind and filled - len(texts) >= ALMOST * filled:
        percent = math.floor(100 * (filled - len(texts)) / filled)
        raise DataError(
            f"{texts[0].place}: {shorten(name)} is {shorten(texts[0].text)!r}, but "
            f"{percent} % of its cells are numbers",
            "Leave the cell empty if the value is missing, or pass "
            f"--condition-on {shorten(name)}:label",
            code="metadata_mismatch",
        )
    values = sorted({cell.text for cell in cells})
    if len(values) > conditions.MOST_VALUES:
        raise DataError(
            f"--condition-on {shorten(name)}: {len(values):,} different labels, such as "
            f"{shorten(values[0], 60)!r}. A column can have at most {conditions.MOST_VALUES:,}",
            "Choose a column with fewer different values",
            code="option_unsuited",
        )
    if len(values) < 2:
        raise _constant_error(name, shorten(values[0], 60) if values else "")
    check_labels(f"--condition-on {shorten(name)}", values, len(cells))
    return LabelColumn(name=name, values=tuple(values), missing=missing)


def check_labels(option: str, values: Sequence[str], count: int) -> None:
    """Refuse labels that are nearly all different, such as captions and file names.

    Args:
        option: the option that selects them.
        values: the different labels.
        count: the number of labeled images.

    Raises:
        DataError: a label has hardly more than one image.
    """
    if count >= FEWEST_LABELED and len(values) > ALMOST * count:
        raise DataError(
            f"{option}: {count:,} images have {len(values):,} different labels, such as "
            f"{shorten(values[0], 60)!r}. A model cannot learn a label from one image",
            "Choose labels that repeat. For captions, use a text-to-image model of diffusers",
            code="option_unsuited",
        )


def _constant_error(name: str, value: str) -> DataError:
    reason = f"every training image has {value}" if value else "no training image has a value"
    text = f"--condition-on {shorten(name)}: {reason}, so there is nothing to learn"
    return DataError(text, "Leave the column out", code="option_unsuited")


def describe_columns(cells: Cells, train: Indices) -> dict[str, str]:
    """Describe each column as a condition for training, or the reason why it cannot be one."""
    descriptions = {}
    for name in cells.columns:
        try:
            descriptions[name] = describe_column(_column(name, "", cells, train))
        except DataError as error:
            descriptions[name] = error.message.removeprefix(f"--condition-on {shorten(name)}: ")
    return descriptions


def encode_rows(table: MetadataTable, cells: Cells) -> Rows:
    """Return the codes of each sample, float32 (N, codes).

    Raises:
        UsageError: a column is missing.
        DataError: a cell is not of its column's kind.
    """
    for name in table.names:
        if name not in cells.columns:
            column = f"column {shorten(name)}, which the model is conditioned on"
            text = f"{cells.tables_text} has no {column}"
            hint = VECTOR_HINT if name == VECTOR else f"Its columns are: {cells.names}"
            raise UsageError(text, hint, code="metadata_mismatch")
    codes = [
        np.array([*map(_code, itertools.repeat(c), cells.columns[c.name])], np.float32)
        for c in table.columns
    ]
    return np.concatenate([part.reshape(len(part), -1) for part in codes], 1)


def describe_unknown_labels(table: MetadataTable, cells: Cells) -> Iterator[str]:
    """Yield a sentence for each column with labels that the model was not trained on."""
    for column in table.columns:
        if not isinstance(column, LabelColumn):
            continue
        filled = (cell for cell in cells.columns.get(column.name, ()) if cell is not None)
        unknown = [cell.text for cell in filled if column.code(cell.text) != column.code(cell.text)]
        if unknown:
            names, count = sorted(set(unknown)), plural(len(unknown), "image")
            examples = format_names(names, len(names), lambda text: shorten(text, 40))
            text = f"{count} with a {shorten(column.name)} that the model was not trained on"
            yield f"{text}, not conditioned on it: {examples}"


def _code(column: conditions.Column, cell: Cell | None) -> float | tuple[float, ...]:
    if isinstance(column, VectorColumn):
        if cell is None:
            return (conditions.UNTOLD,) * column.width
        return column.code(_read_vector(column.name, cell, column.width))
    if cell is None:
        return conditions.UNTOLD
    if isinstance(column, LabelColumn):
        return column.code(cell.text)
    if cell.number is None or math.isinf(cell.number):
        reason = f"{shorten(column.name)} is {shorten(cell.text)!r}, not a number"
        raise DataError(f"{cell.place}: {reason}", code="metadata_mismatch")
    return conditions.UNTOLD if math.isnan(cell.number) else column.code(cell.number)


def parse_rows(
    table: MetadataTable, on: Sequence[str], vectors: Sequence[tuple[float, ...]] = ()
) -> tuple[tuple[float, ...], ...]:
    """Return the rows of `--on NAME=VALUE` and `--on-vector`: every combination of values.

    Raises:
        UsageError: a column or label does not exist, a value is not a number, or vectors do not
            suit the model.
    """
    values_by_column: dict[str, list[conditions.Value]] = {}
    for words in on:
        name, _, text = words.partition("=")
        if name not in table.names:  # its name may contain an equals sign
            name = next((n for n in table.names if words.startswith(f"{n}=")), name)
            text = words.removeprefix(f"{name}=")
        column = lookup(table.names, name, "--on")
        if isinstance(column, VectorColumn):
            text = f"--on {shorten(name)}: the column has vectors"
            raise UsageError(text, "Pass --on-vector FILE.npy", code="option_unsuited")
        values_by_column.setdefault(name, []).append(_value(column, text))
    if vectors:
        width, size = table.vector.width if table.vector else 0, len(vectors[0])
        if table.vector is None or size != width:
            trait = f"takes vectors of {width:,}" if width else "was trained without vectors"
            text = f"--on-vector: vectors of {size:,} numbers, but the model {trait}"
            raise UsageError(text, "Pass other vectors", code="model_mismatch")
        values_by_column[table.vector.name] = [*vectors]
    rows = itertools.product(*values_by_column.values())
    return tuple(table.row(dict(zip(values_by_column, values, strict=True))) for values in rows)


def _value(column: NumberColumn | LabelColumn, text: str) -> conditions.Value:
    if isinstance(column, LabelColumn):
        values = dict.fromkeys(column.values)
        lookup(values, text, f"--on {shorten(column.name)}={shorten(text)}")
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = f"Pass a number from {digits(column.low)} to {digits(column.high)}"
        line = f"--on {shorten(column.name)}={shorten(text)}: not a number"
        raise UsageError(line, hint, code="invalid_value")
    return number


def describe_out_of_range(table: MetadataTable, on: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each number of --on outside the range of the training data."""
    for column in table.columns:
        for words in on:
            name, _, text = words.rpartition("=")
            if not isinstance(column, NumberColumn) or name != column.name:
                continue
            if not column.low <= float(text) <= column.high:
                yield (
                    f"--on {shorten(words)}: outside {digits(column.low)} to "
                    f"{digits(column.high)}, the range of the training data"
                )


def find_missing_columns(table: MetadataTable, rows: Sequence[Sequence[float]]) -> list[str]:
    """Return the columns that some rows leave out, though every training sample has them."""
    values = [table.values(row) for row in rows or [table.row({})]]
    return [
        column.name
        for column in table.columns
        if not column.missing and any(column.name not in row_values for row_values in values)
    ]


def decode_row(table: MetadataTable, row: Sequence[float]) -> dict[str, Any]:
    """Return the values of a row by column, for a manifest."""
    return {
        name: float(f"{value:.10g}") if isinstance(value, float) else shorten(str(value))
        for name, value in table.values(row).items()
    }


def describe_column(column: conditions.Column) -> str:
    """Describe a column: its range, its labels or its size."""
    blank = f"; missing from {column.missing:.0%}" if column.missing else ""
    if isinstance(column, VectorColumn):
        return f"vectors of {plural(column.width, 'number')}{blank}"
    if isinstance(column, NumberColumn):
        spread = f"mean {column.mean:.4g}, standard deviation {column.deviation:.4g}"
        return f"{digits(column.low)} to {digits(column.high)}, {spread}{blank}"
    listed = ", ".join(shorten(value, 40) for value in column.values[:10])
    more = f" and {len(column.values) - 10:,} more" if len(column.values) > 10 else ""
    return f"{len(column.values):,} labels: {listed}{more}{blank}"
