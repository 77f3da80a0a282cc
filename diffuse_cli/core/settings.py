"""Frozen dataclasses that check their fields, for example a network's `Config`.

A field's annotation is its type; `setting` adds a range.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

from diffuse_cli.core.registry import InvalidArgument, suggest

S = TypeVar("S")

_KINDS: dict[str, tuple[Any, str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}
"""The types that a field's annotation allows, and what it is called."""


def setting(default: Any = MISSING, low: float | None = None, high: float | None = None) -> Any:
    """A field of `Settings` with the range of its number, or of each number in a tuple."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


class Settings:
    """The base of settings.

    Raises:
        InvalidArgument: a value of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            kind = type_name(field)
            if value is None and kind.endswith("| None"):
                continue
            kind = kind.removesuffix(" | None")
            if kind.startswith("tuple"):
                if not isinstance(value, (list, tuple)):
                    raise InvalidArgument(f"must be a list, not {value!r}", argument=field.name)
                value, kind = tuple(value), kind.removeprefix("tuple[").split(",")[0].rstrip("]")
            low, high = field.metadata.get("range", (None, None))
            if isinstance(value, tuple):
                value = tuple(checked(field.name, kind, each, low, high) for each in value)
            else:
                value = checked(field.name, kind, value, low, high)
            object.__setattr__(self, field.name, value)


def type_name(field: dataclasses.Field[Any]) -> str:
    """A field's annotation as it is written, also where annotations are not strings."""
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)


def checked(
    name: str,
    kind: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """`value` as what an annotation names; a whole number becomes a float where one is meant.

    `low` and `high` belong to a number's range, `below` does not. Annotations other than int,
    float, bool and str are not checked.

    Raises:
        InvalidArgument: with the argument `name`.
    """
    if kind not in _KINDS:
        return value
    types, called = _KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise InvalidArgument(f"must be {called}, not {reprlib.repr(value)}", argument=name)
    if kind not in ("int", "float"):
        return value
    if isinstance(value, int) and value.bit_length() > 64:
        raise InvalidArgument("is too large", argument=name)
    if not math.isfinite(value):
        raise InvalidArgument(f"must be a finite number, not {value}", argument=name)
    for words, bound, holds in (
        ("at least", low, operator.ge),
        ("at most", high, operator.le),
        ("below", below, operator.lt),
    ):
        if bound is not None and not holds(value, bound):
            problem = f"must be {words} {digits(bound)}, not {digits(value)}"
            raise InvalidArgument(problem, argument=name)
    return float(value) if kind == "float" else value


def digits(value: float) -> str:
    """A number with all of its digits, and no more."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def dimensions(size: Sequence[int]) -> str:
    """`64x64`, or `48 high x 64 wide` where height and width differ."""
    if len(size) == 2 and size[0] != size[1]:
        return f"{size[0]} high x {size[1]} wide"
    return "x".join(map(str, size))


def from_dict(kind: type[S], values: Mapping[str, Any]) -> S:
    """Settings from plain values.

    Raises:
        InvalidArgument: an unknown name, a missing one, or a value that the settings refuse.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise InvalidArgument(f"there is no setting '{name}'", suggest(str(name), fields))
    for name, f in fields.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise InvalidArgument("is missing", argument=name)
    return kind(**values)


def to_dict(settings: object) -> dict[str, Any]:
    """Settings as plain values: tuples become lists, settings in them tables, None is left out."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_dict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
