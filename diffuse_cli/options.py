"""Options as the fields of frozen dataclasses: typed, explained and checked in one place.

A field carries its flag, help and range as metadata, so that an option is written once: the
command line, the checks, the documentation and the TOML all read it from there.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diffuse_cli.errors import UsageError, suggest
from diffuse_cli.parsing import brief

OVERWRITE = "Replace existing output."
"""The help of an option that every command which writes has."""

GROUPS = (
    "Options",
    "Data",
    "Network",
    "Process",
    "Sampling",
    "Measuring",
    "Optimisation",
    "Run",
    "Output",
)
"""The sections of `--help` in their order: first what everyone needs, last what few do."""

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field is typed, explained and checked.

    Attributes:
        help: one sentence for `--help`.
        low, high: the range of a number, both ends included.
        below: a bound that a number stays below.
        table: what the command line offers as names, for example `schedules`.
        parse: makes the value from what was typed or read from TOML; raises ValueError.
        control: it cannot change the weights: not compared by `--resume`, not in the model file.
        place: of this machine or of this run, such as a path: in the TOML, not in the model file.
        argument: positional, without a flag.
        flag: the long flag where it is not the field's name, or a short form beside it.
        group: its section of `--help`, one of `GROUPS`.
        shown: the default as `--help` shows it, where it depends on machine or data.
    """

    help: str
    low: float | None = None
    high: float | None = None
    below: float | None = None
    table: str = ""
    parse: Callable[[Any], Any] | None = None
    control: bool = False
    place: bool = False
    argument: bool = False
    flag: str = ""
    shown: str = ""
    metavar: str = ""
    group: str = GROUPS[0]


def option(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A dataclass field that is an option of the command line."""
    return field(default=default, metadata={"option": Option(help=help, **metadata)})


def options(config: type | object) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The fields of a configuration that are options, with their metadata."""
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        if "option" in f.metadata:
            yield f, f.metadata["option"]


def first_given(config: object, *kinds: type) -> str:
    """The flag of the first option of `kinds` that is not at its default, or an empty string."""
    names = {f.name for kind in kinds for f, _ in options(kind)}
    for f, _ in options(config):
        if f.name in names and getattr(config, f.name) != getattr(type(config), f.name):
            return flag_of(f)
    return ""


def converted(config: object, kind: type[C], **changes: Any) -> C:
    """A configuration of another kind, with the options that both have, and these changes."""
    theirs = {f.name for f, _ in options(kind)}
    shared = {f.name: getattr(config, f.name) for f, _ in options(config) if f.name in theirs}
    return kind(**{**shared, **changes})


def flag_of(f: dataclasses.Field[Any]) -> str:
    """The flag of a field, long where there is a long one; its name where it is positional."""
    spec: Option = f.metadata["option"]
    if spec.argument:
        return spec.metavar or f.name.upper()
    if spec.flag.startswith("--"):
        return spec.flag
    return f"-{f.name}" if len(f.name) == 1 else "--" + f.name.replace("_", "-")


class Config:
    """Checks every number when a configuration is made."""

    def __post_init__(self) -> None:
        for f, spec in options(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if spec.parse is not None:
                object.__setattr__(self, f.name, _parse(f, spec, value))
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                self._check_number(f, spec, value)
            _check_type(f, value)
            if str(f.type).startswith("float") and isinstance(value, int):
                object.__setattr__(self, f.name, float(value))

    @staticmethod
    def _check_number(f: dataclasses.Field[Any], spec: Option, value: float) -> None:
        if isinstance(value, int) and value.bit_length() > 64:
            raise UsageError(f"{flag_of(f)} is too large")
        if not math.isfinite(value):
            raise UsageError(f"{flag_of(f)} must be a finite number, not {value}")
        for words, bound, within in (
            ("at least", spec.low, operator.ge),
            ("at most", spec.high, operator.le),
            ("below", spec.below, operator.lt),
        ):
            if bound is not None and not within(value, bound):
                text = f"{flag_of(f)} must be {words} {digits(bound)}, not {digits(value)}"
                raise UsageError(text)


def digits(value: float) -> str:
    """A number with all of its digits, and no more."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _parse(f: dataclasses.Field[Any], spec: Option, value: Any) -> Any:
    if spec.parse is None or value is None:
        return value
    try:
        return spec.parse(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{flag_of(f)} {brief(value)}: {error}") from error


def parsed(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the options of `kind` parsed, so that a file that one names is read once.

    Raises:
        UsageError: a value that cannot be parsed.
    """
    known = {f.name: (f, spec) for f, spec in options(kind)}
    return {k: _parse(*known[k], value) if k in known else value for k, value in values.items()}


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
}
"""The types that a kind of field takes, and what it is called."""


def from_text(f: dataclasses.Field[Any], text: str) -> int | float | str:
    """What was typed for a field: a number where it is one.

    Raises:
        UsageError: it is not the number that it should be.
    """
    kind = str(f.type).removesuffix(" | None")
    if f.metadata["option"].parse is not None or kind not in ("int", "float"):
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise UsageError(f"{flag_of(f)} must be {_KINDS[kind][1]}, not {brief(text)}") from None


def _check_type(f: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a TOML value of another type than the field's."""
    kind = str(f.type).removesuffix(" | None")
    if kind not in _KINDS:
        return
    allowed, name = _KINDS[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
        raise UsageError(f"{flag_of(f)} must be {name}, not {brief(value)}")


# -- dictionaries and TOML ------------------------------------------------------------------------


def from_dict(kind: type[C], values: Mapping[str, Any], where: str = "configuration") -> C:
    """A configuration from a dictionary, refusing unknown keys and missing ones.

    Raises:
        UsageError: an unknown or missing key, or a value out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UsageError(f"{where}: there is no option '{name}'", suggest(str(name), fields))
    for name, f in fields.items():
        required = f.default is MISSING and f.default_factory is MISSING
        if required and name not in values:
            spec: Option | None = f.metadata.get("option")
            raise UsageError(f"{where}: {(spec and spec.metavar) or name.upper()} is missing")
    return kind(**values)


def to_dict(config: object, *, control: bool = True, places: bool = True) -> dict[str, Any]:
    """The set fields of a configuration as plain values, with or without control and paths."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        spec: Option | None = f.metadata.get("option")
        value = getattr(config, f.name)
        if value is None or (
            spec and ((spec.control and not control) or (spec.place and not places))
        ):
            continue
        if isinstance(value, tuple):
            value = list(value)
        result[f.name] = dict(value) if isinstance(value, Mapping) else value
    return result


def to_arguments(config: object) -> list[str]:
    """The arguments that make this configuration, without those that are at their defaults."""
    positional, flags = [], []
    for f, spec in options(config):
        value = getattr(config, f.name)
        if spec.argument:
            positional.append(str(value))
        elif value == f.default:
            continue
        elif isinstance(value, bool):
            flags.append(flag_of(f) if value else "--no-" + flag_of(f).removeprefix("--"))
        else:
            flag = spec.flag or flag_of(f)
            repeated = isinstance(value, tuple) and str(f.type).startswith("tuple[str")
            for each in value if repeated else [value]:
                joined = ",".join(map(str, each)) if isinstance(each, tuple) else str(each)
                flags += [flag, joined]
    return positional + flags


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML."""
    import tomli_w

    return tomli_w.dumps(values)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file, with any line ends and with or without a byte order mark.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    from diffuse_cli.files import show

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except OSError as error:
        raise UsageError(f"--config {show(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {show(path)} is not TOML: {error}") from error
