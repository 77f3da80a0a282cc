"""Frozen dataclasses that check their fields: a network's `Config`, the options of a command.

A field's annotation is its type. `setting` adds its range, its help and its parser.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Self

from diffuse_cli.core.registry import InvalidArgument, suggest

_KINDS: dict[str, tuple[Any, str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}
"""Types that an annotation allows, and its name in messages."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The range, help and parser of a field.

    Attributes:
        low, high: the range of a number, or of each number in a tuple, inclusive.
        below: an exclusive upper bound.
        help: one sentence.
        parse: a function from text or plain values to the field's value, which raises ValueError.
    """

    low: float | None = None
    high: float | None = None
    below: float | None = None
    help: str = ""
    parse: Callable[[Any], Any] | None = None


def setting(default: Any = MISSING, low: float | None = None, high: float | None = None) -> Any:
    """Return a field of `Settings` with the range of its number, or of each number in a tuple."""
    return dataclasses.field(default=default, metadata={"setting": Setting(low=low, high=high)})


class Settings:
    """Base class of settings.

    Raises:
        InvalidArgument: a value of the wrong type or out of range.
    """

    NOUN: ClassVar[str] = "setting"

    def __post_init__(self) -> None:
        for name, field in fields_by_name(self).items():
            object.__setattr__(self, name, check_field(field, getattr(self, name)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make settings from plain values.

        Raises:
            InvalidArgument: an unknown name, a missing one, or a value that the settings refuse.
        """
        fields = fields_by_name(cls)
        for name in values:
            if name not in fields:
                text, hint = f"there is no {cls.NOUN} '{name}'", suggest(str(name), fields)
                raise InvalidArgument(text, hint, code="unknown_setting")
        for name, f in fields.items():
            if name not in values and f.default is MISSING and f.default_factory is MISSING:
                raise InvalidArgument("is missing", argument=name, code="missing_argument")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without those that are None.

        Tuples become lists, and nested settings become dicts.
        """
        values = {name: getattr(self, name) for name in fields_by_name(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


def fields_by_name(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass by name."""
    return {field.name: field for field in dataclasses.fields(kind)}


def field_annotation(field: dataclasses.Field[Any]) -> str:
    """Return a field's annotation as text without its None, even if annotations are types."""
    name = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    return name.removesuffix(" | None")


def check_field(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a field's value after parsing and checking its type and range.

    Raises:
        InvalidArgument: a value of the wrong type or out of range.
    """
    kind, spec = field_annotation(field), field.metadata.get("setting", Setting())
    if value is None and (field.default is None or str(field.type).endswith("| None")):
        return None
    if spec.parse:
        return parse_field(field, value)
    if not kind.startswith("tuple"):
        return check_value(field.name, kind, value, spec)
    if not isinstance(value, (list, tuple)):
        raise InvalidArgument(f"must be a list, not {value!r}", argument=field.name)
    kind = kind.removeprefix("tuple[").split(",")[0].rstrip("]")
    return tuple(check_value(field.name, kind, element, spec) for element in value)


def parse_field(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value parsed by the field's parser, or unchanged if the field has none.

    Raises:
        InvalidArgument: the parser refuses the value.
    """
    parse = field.metadata.get("setting", Setting()).parse
    try:
        return value if parse is None or value is None else parse(value)
    except (ValueError, TypeError, AttributeError) as error:
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        raise InvalidArgument(f"{shorten_repr(single)}: {error}", argument=field.name) from error


def shorten_repr(value: Any) -> str:
    """Return the shortened repr of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:60]} …"


def check_value(name: str, kind: str, value: Any, spec: Setting) -> Any:
    """Check a value's type and range and return it, as a float if the annotation is float.

    Annotations other than int, float, bool and str are not checked.

    Raises:
        InvalidArgument: a wrong type or a value out of range, for the argument `name`.
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
        ("at least", spec.low, operator.ge),
        ("at most", spec.high, operator.le),
        ("below", spec.below, operator.lt),
    ):
        if bound is not None and not holds(value, bound):
            problem = f"must be {words} {digits(bound)}, not {digits(value)}"
            raise InvalidArgument(problem, argument=name)
    return float(value) if kind == "float" else value


def digits(value: float) -> str:
    """Return a number as text, with all of its digits and no trailing zeros."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def dimensions(size: Sequence[int]) -> str:
    """Return a size as text: `64x64`, or `48 high x 64 wide` if height and width differ."""
    if len(size) == 2 and size[0] != size[1]:
        return f"{size[0]} high x {size[1]} wide"
    return "x".join(map(str, size))


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(element) for element in value] if isinstance(value, tuple) else value
