"""Frozen dataclasses that check their fields, for example a network's `Config`.

A field's annotation is its type; `setting` adds a range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, TypeVar

from diffuse_cli.core.errors import InvalidArgument, suggest

S = TypeVar("S")

_KINDS = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


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
            kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            if value is None and kind.endswith("| None"):
                continue
            kind = kind.removesuffix(" | None")
            if kind.startswith("tuple"):
                if not isinstance(value, (list, tuple)):
                    raise InvalidArgument(f"must be a list, not {value!r}", argument=field.name)
                value, kind = tuple(value), kind.removeprefix("tuple[").split(",")[0].rstrip("]")
                object.__setattr__(self, field.name, value)
            low, high = field.metadata.get("range", (None, None))
            for each in value if isinstance(value, tuple) else (value,):
                _check(field.name, kind, each, low, high)
            if kind == "float":
                floats = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
                object.__setattr__(self, field.name, floats)


def _check(name: str, kind: str, value: Any, low: float | None, high: float | None) -> None:
    """Refuse a value of another type, and a number that is not finite or not in [low, high]."""
    allowed = _KINDS.get(kind, (object,))
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind in ("int", "float")):
        raise InvalidArgument(f"must be {kind}, not {value!r}", argument=name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    if isinstance(value, int) and value.bit_length() > 64:
        raise InvalidArgument("is too large", argument=name)
    if not math.isfinite(value):
        raise InvalidArgument(f"must be a finite number, not {value}", argument=name)
    if low is not None and value < low:
        raise InvalidArgument(f"must be at least {low:g}, not {value:g}", argument=name)
    if high is not None and value > high:
        raise InvalidArgument(f"must be at most {high:g}, not {value:g}", argument=name)


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
    """Settings as plain values: tuples become lists, None is left out."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }
