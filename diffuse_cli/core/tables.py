"""Columns of a table that a model can be told: a number or a label of each sample."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.settings import Settings, from_dict, setting

MOST_COLUMNS, MOST_VALUES = 64, 1000
"""The most columns of a table, and the most different labels of one."""

UNTOLD = math.nan
"""The code of what is not told."""

FARTHEST = 1000.0
"""The largest code of a number, in deviations."""

Value = float | str


@dataclass(frozen=True, kw_only=True)
class Number(Settings):
    """A column of numbers; the code of one is (value - mean) / deviation.

    Attributes:
        mean, deviation, low, high: of the training samples that have one.
        missing: the share of the training samples that have none.
    """

    name: str = setting()
    mean: float = setting()
    deviation: float = setting(low=sys.float_info.min)
    low: float = setting()
    high: float = setting()
    missing: float = setting(0.0, 0, 1)

    def code(self, value: Value) -> float:
        """The code of a finite number."""
        far = (float(value) - self.mean) / self.deviation
        return max(-FARTHEST, min(FARTHEST, far))

    def value(self, code: float) -> Value:
        """The number of a code."""
        return self.mean + self.deviation * code


@dataclass(frozen=True, kw_only=True)
class Labels(Settings):
    """A column of labels; the code of one is its place in `values`.

    Attributes:
        values: those of the training samples.
        missing: the share of the training samples that have none.
    """

    name: str = setting()
    values: tuple[str, ...] = setting()
    missing: float = setting(0.0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.values) <= MOST_VALUES:
            problem = f"must be 1 to {MOST_VALUES:,} labels, not {len(self.values):,}"
            raise InvalidArgument(problem, argument="values")
        if len(self._places) < len(self.values) or "" in self._places:
            raise InvalidArgument("must differ, and have letters", argument="values")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: k for k, value in enumerate(self.values)}

    def code(self, value: Value) -> float:
        """The code of a label, `UNTOLD` for one that is not among the values."""
        return float(self._places.get(str(value), UNTOLD))

    def value(self, code: float) -> Value:
        """The label of a code."""
        return self.values[int(code)]


Column = Number | Labels


@dataclass(frozen=True, kw_only=True)
class Table(Settings):
    """What a model is told of each sample: a row of codes, `UNTOLD` where it is told nothing."""

    columns: tuple[Column, ...] = setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = tuple(map(_column, self.columns))
        object.__setattr__(self, "columns", columns)
        if not 0 < len(columns) <= MOST_COLUMNS:
            problem = f"must be 1 to {MOST_COLUMNS}, not {len(columns):,}"
            raise InvalidArgument(problem, argument="columns")
        if len(self.names) < len(columns) or "" in self.names:
            raise InvalidArgument("must have different names", argument="columns")

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def names(self) -> dict[str, Column]:
        """The columns by name."""
        return {column.name: column for column in self.columns}

    def row(self, values: Mapping[str, Value]) -> tuple[float, ...]:
        """The codes of what is told, by the columns' names."""
        return tuple(c.code(values[c.name]) if c.name in values else UNTOLD for c in self.columns)

    def values(self, row: Sequence[float]) -> dict[str, Value]:
        """What a row tells, by the columns' names."""
        pairs = zip(self.columns, row, strict=True)
        return {column.name: column.value(code) for column, code in pairs if code == code}


def _column(column: Any) -> Column:
    if isinstance(column, Mapping):  # as plain values
        kind: type[Column] = Labels if "values" in column else Number
        return from_dict(kind, column)
    if not isinstance(column, Number | Labels):
        raise InvalidArgument("must be tables", argument="columns")
    return column
