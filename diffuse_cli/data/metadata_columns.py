"""Columns of a table that a model is told: from cells and from what is typed to its codes."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.core.conditions import (
    MOST_COLUMNS,
    MOST_VALUES,
    UNTOLD,
    Column,
    Labels,
    MetadataTable,
    Numbers,
    Value,
)
from diffuse_cli.core.settings import digits
from diffuse_cli.data.summary import listed, plural
from diffuse_cli.system.errors import DataError, UsageError, lookup, near
from diffuse_cli.system.files import brief

if TYPE_CHECKING:
    import numpy.typing as npt

    from diffuse_cli.data.metadata_files import Cell, Cells

    Rows = npt.NDArray[np.float32]

KINDS = ("number", "label")
"""What may follow a column's name and a colon, where its kind is not to be seen from its cells."""

ALMOST = 0.9
"""From this share of numbers on, a column is likely to be meant as one."""


def example(column: Column) -> tuple[str, float | str]:
    """Return the name of a column, and a value that it has in the training data."""
    return column.name, column.low if isinstance(column, Numbers) else column.values[0]


# -- of tables ------------------------------------------------------------------------------------


def split(asked: str) -> tuple[str, str]:
    """`site:label` as the name of a column and its kind, which is empty where it is not said."""
    name, colon, kind = asked.rpartition(":")
    return (name, kind) if colon and kind in KINDS else (asked, "")


def names_of(asked: Sequence[str]) -> list[str]:
    """The names of the columns of --condition-on.

    Raises:
        UsageError: too many, or one twice.
    """
    names = [split(one)[0] for one in asked]
    if len(set(names)) < len(names):
        raise UsageError("--condition-on names a column twice", "Name it once")
    if len(names) > MOST_COLUMNS:
        raise UsageError(f"--condition-on: at most {MOST_COLUMNS} columns, not {len(names):,}")
    return names


def table_of(asked: Sequence[str], cells: Cells, train: npt.NDArray[np.int64]) -> MetadataTable:
    """The table of a training: what its columns are, from the samples that are trained on.

    Args:
        asked: columns, some with their kind.
        train: indices of these samples.

    Raises:
        UsageError: no such column.
        DataError: cells that are not of the kind, or a column that tells nothing.
    """
    return MetadataTable(columns=tuple(_column(*split(one), cells, train) for one in asked))


def _column(name: str, kind: str, cells: Cells, train: npt.NDArray[np.int64]) -> Column:
    every = cells.columns.get(name)
    if every is None:
        found = near(name, cells.columns)
        raise UsageError(
            f"--condition-on {brief(name)}: {cells.where} has no such column; it has {cells.names}",
            f"Did you mean '{brief(found)}'?" if found else "Name one of them",
        )
    told = [cell for cell in every if cell is not None]
    others = [cell for cell in told if cell.number is None]
    own = [cell for k in train if (cell := every[k]) is not None]
    missing = 1 - len(own) / max(1, len(train))
    if kind == "number" and others:
        raise DataError(f"{others[0].place}: {brief(name)} is {brief(others[0].text)!r}, no number",
                        "Leave the cell empty where there is none")  # fmt: skip
    if kind == "label" or others:
        return _labels(name, kind, own, others, len(told), missing)
    return _number(name, told, own, len(train))


def _number(name: str, told: Sequence[Cell], own: Sequence[Cell], train: int) -> Numbers:
    for cell in told:
        if cell.number is not None and math.isinf(cell.number):
            raise DataError(f"{cell.place}: {brief(name)} is {brief(cell.text)}, not finite")
    values = [float(n) for cell in own if (n := cell.number) is not None and not math.isnan(n)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    # Sums that do not depend on the order of samples.
    mean = math.fsum(value / len(values) for value in values)
    far = max((abs(value - mean) for value in values), default=0.0)
    if low == high or far < sys.float_info.min:
        raise _tells_nothing(name, digits(values[0]) if values else "")
    if math.isinf(far):
        raise DataError(
            f"--condition-on {brief(name)}: {low:g} to {high:g} is too far", "Leave the column out"
        )
    variance = math.fsum(((value - mean) / far) ** 2 / len(values) for value in values)
    return Numbers(
        name=name,
        mean=mean,
        deviation=far * math.sqrt(variance),
        low=low,
        high=high,
        missing=1 - len(values) / train,
    )


def _labels(
    name: str, kind: str, own: Sequence[Cell], others: Sequence[Cell], told: int, missing: float
) -> Labels:
    if not kind and told - len(others) >= ALMOST * told:
        share = math.floor(100 * (told - len(others)) / told)
        raise DataError(
            f"{others[0].place}: {brief(name)} is {brief(others[0].text)!r}, and {share} % of its "
            "cells are numbers",
            f"Leave the cell empty if it is missing, or type {brief(name)}:label",
        )
    values = sorted({cell.text for cell in own})
    if len(values) > MOST_VALUES:
        raise DataError(
            f"--condition-on {brief(name)}: {len(values):,} different labels, such as "
            f"{brief(values[0], 60)!r}; at most {MOST_VALUES:,} can be told",
            "Choose a column that many images share",
        )
    if len(values) < 2:
        raise _tells_nothing(name, brief(values[0], 60) if values else "")
    return Labels(name=name, values=tuple(values), missing=missing)


def _tells_nothing(name: str, value: str) -> DataError:
    what = f"every image that is trained on has {value}" if value else "no image has one"
    return DataError(
        f"--condition-on {brief(name)}: {what}, which tells nothing", "Leave the column out"
    )


def survey(cells: Cells, train: npt.NDArray[np.int64]) -> dict[str, str]:
    """What each column would be in a training, in words, or why it would be refused."""
    found = {}
    for name in cells.columns:
        try:
            found[name] = described(_column(name, "", cells, train))
        except DataError as error:
            found[name] = error.message.removeprefix(f"--condition-on {brief(name)}: ")
    return found


def rows_of(table: MetadataTable, cells: Cells) -> Rows:
    """The codes of each sample, float32 (N, columns).

    Raises:
        UsageError: a column is missing.
        DataError: a cell that is no number where a number is told.
    """
    for name in table.names:
        if name not in cells.columns:
            text = f"{cells.where} has no column {brief(name)}, which the model is told"
            raise UsageError(f"{text}; it has {cells.names}")
    return np.array(
        [[*map(_code, itertools.repeat(c), cells.columns[c.name])] for c in table.columns],
        np.float32,
    ).T.copy()


def unknown(table: MetadataTable, cells: Cells) -> Iterator[str]:
    """A sentence for each column with labels that are none of its values."""
    for column in table.columns:
        if not isinstance(column, Labels):
            continue
        told = (cell for cell in cells.columns.get(column.name, ()) if cell is not None)
        lone = [cell.text for cell in told if column.code(cell.text) != column.code(cell.text)]
        if lone:
            names, count = sorted(set(lone)), plural(len(lone), "image")
            few = listed(names, len(names), lambda text: brief(text, 40))
            text = f"{count} of a {brief(column.name)} that was not trained on"
            yield f"{text}, told nothing of it: {few}"


def _code(column: Column, cell: Cell | None) -> float:
    if cell is None:
        return UNTOLD
    if isinstance(column, Labels):
        return column.code(cell.text)
    if cell.number is None or math.isinf(cell.number):
        raise DataError(f"{cell.place}: {brief(column.name)} is {brief(cell.text)!r}, no number")
    return UNTOLD if math.isnan(cell.number) else column.code(cell.number)


# -- of what is typed -----------------------------------------------------------------------------


def typed_rows(table: MetadataTable, on: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """The rows of `--on NAME=VALUE`, each of a column with each of the others.

    Raises:
        UsageError: no such column or label, or no number.
    """
    wanted: dict[str, list[Value]] = {}
    for words in on:
        name, _, text = words.partition("=")
        if name not in table.names:  # it may have a sign of equality in its name
            name = next((n for n in table.names if words.startswith(f"{n}=")), name)
            text = words.removeprefix(f"{name}=")
        column = lookup(table.names, name, "--on")
        wanted.setdefault(name, []).append(_value(column, text))
    rows = itertools.product(*wanted.values())
    return tuple(table.row(dict(zip(wanted, values, strict=True))) for values in rows)


def _value(column: Column, text: str) -> Value:
    if isinstance(column, Labels):
        values = dict.fromkeys(column.values)
        lookup(values, text, f"--on {brief(column.name)}={brief(text)}")
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"--on {brief(column.name)}={brief(text)}: not a number",
            f"The model knows {digits(column.low)} to {digits(column.high)}",
        )
    return number


def out_of_range(table: MetadataTable, on: Sequence[str]) -> Iterator[str]:
    """A sentence for each number of --on that is outside those of the training."""
    for column in table.columns:
        for words in on:
            name, _, text = words.rpartition("=")
            if not isinstance(column, Numbers) or name != column.name:
                continue
            if not column.low <= float(text) <= column.high:
                yield (
                    f"--on {brief(words)}: outside {digits(column.low)} to "
                    f"{digits(column.high)}, which the model was trained on"
                )


def untaught(table: MetadataTable, rows: Sequence[Sequence[float]]) -> list[str]:
    """The columns that some rows leave out, though every training sample has them."""
    blank = (UNTOLD,) * len(table)
    return [
        column.name
        for k, column in enumerate(table.columns)
        if not column.missing and any(row[k] != row[k] for row in rows or [blank])
    ]


def told_by(table: MetadataTable, row: Sequence[float]) -> dict[str, Any]:
    """What a row tells, for a manifest."""
    return {
        name: brief(value) if isinstance(value, str) else float(f"{value:.10g}")
        for name, value in table.values(row).items()
    }


def described(column: Column) -> str:
    """A column in words: its range, or its labels."""
    blank = f"; missing from {column.missing:.0%}" if column.missing else ""
    if isinstance(column, Numbers):
        spread = f"mean {column.mean:.4g}, deviation {column.deviation:.4g}"
        return f"{digits(column.low)} to {digits(column.high)}, {spread}{blank}"
    listed = ", ".join(brief(value, 40) for value in column.values[:10])
    more = f" and {len(column.values) - 10:,} more" if len(column.values) > 10 else ""
    return f"{len(column.values):,} labels: {listed}{more}{blank}"
