"""Options are settings with a flag.

The command line, documentation and TOML are made from the fields of frozen dataclasses, which
`core.settings` checks.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from diffuse_cli.config.parsers import as_number
from diffuse_cli.core import InvalidArgument, Settings, settings
from diffuse_cli.system import UsageError, show, translate_errors
from diffuse_cli.system.descriptors import read_bounded

C = TypeVar("C", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Option(settings.Setting):
    """A field on the command line.

    Attributes:
        table: the accepted names, or the path of their table: `core.losses.LOSSES`.
        control: does not affect the weights: `--resume` ignores it, the model file omits it.
        place: belongs to this machine or run, like a path: the model file omits it.
        argument: positional, without a flag.
        flag: the long flag if it is not the field's name, or an additional short one.
        group: its section of `--help`.
        shown: the default in `--help`, if it depends on machine or data.
    """

    table: str | tuple[str, ...] = ()
    control: bool = False
    place: bool = False
    argument: bool = False
    flag: str = ""
    shown: str = ""
    metavar: str = ""
    group: str = "Options"


@dataclass(frozen=True)
class OptionMaker:
    """Makes dataclass fields that are options of the command line, in a section of `--help`."""

    group: str

    def __call__(self, default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
        """Return a dataclass field that is an option of the group."""
        spec = Option(help=help, group=self.group, **metadata)
        return field(default=default, metadata={"setting": spec})

    def optional(self, help: str, **metadata: Any) -> Any:
        """Return an option that is None unless it is given."""
        return self(None, help, **metadata)


class OptionMakers(OptionMaker):
    """The maker of the options needed most and of arguments, and of each further section."""

    conditioning = OptionMaker("Conditioning")
    data = OptionMaker("Data")
    network = OptionMaker("Network")
    process = OptionMaker("Process")
    sampling = OptionMaker("Sampling")
    measuring = OptionMaker("Measuring")
    optimizer = OptionMaker("Optimization")
    run = OptionMaker("Run")
    output = OptionMaker("Output")

    def argument(self, metavar: str, help: str) -> Any:
        """Return a dataclass field that is a positional argument: a path, and required."""
        return self(help=help, metavar=metavar, argument=True, place=True)

    def model(self, metavar: str = "MODEL") -> Any:
        """Return the argument of a model."""
        return self.argument(metavar, "Model file, run directory, or hf://ORG/NAME.")

    def overwrite(self, control: bool = False) -> Any:
        """Return the option that every command that writes has."""
        return self(False, "Replace existing output.", control=control)

    def repeat(self, kind: type[Options], name: str, **changes: Any) -> Any:
        """Return a dataclass field that is an option of another command, with these changes."""
        f = settings.fields_by_name(kind)[name]
        default, spec = changes.pop("default", f.default), f.metadata["setting"]
        return field(default=default, metadata={"setting": replace(spec, **changes)})


option = OptionMakers("Options")

GROUPS = (
    option.group,
    *(maker.group for maker in vars(OptionMakers).values() if isinstance(maker, OptionMaker)),
)
"""The sections of `--help`, the most needed first."""


def option_fields(config: type | object) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """Yield the fields of a configuration that are options, with their metadata."""
    for f in settings.fields_by_name(config).values():
        if isinstance(spec := f.metadata.get("setting"), Option):
            yield f, spec


def changed_flags(config: object) -> dict[str, str]:
    """Return the flags of the options that differ from their defaults, by name."""
    return {
        f.name: field_flag(f)
        for f, _ in option_fields(config)
        if getattr(config, f.name) != f.default
    }


def find_changed_flag(config: object, *kinds: type) -> str:
    """Return the flag of the first option of `kinds` that differs from its default, or an empty
    string."""
    names = {f.name for kind in kinds for f, _ in option_fields(kind)}
    return next((flag for name, flag in changed_flags(config).items() if name in names), "")


def needs_error(flag: str, needed: str, hint: str = "Pass both, or neither") -> UsageError:
    """Return the error of an option that has no effect without another."""
    return UsageError(f"{flag} needs {needed}", hint, code="option_needs")


def conflict_error(first: str, second: str, hint: str = "Leave one of them out") -> UsageError:
    """Return the error of two options that exclude each other."""
    return UsageError(f"{first} and {second} exclude each other", hint, code="options_conflict")


def convert_options(config: object, kind: type[C], **changes: Any) -> C:
    """Return a configuration of another kind: the options they share, and these changes."""
    names = {f.name for f, _ in option_fields(kind)}
    shared = {f.name: getattr(config, f.name) for f, _ in option_fields(config) if f.name in names}
    return kind(**{**shared, **changes})


def field_flag(f: dataclasses.Field[Any]) -> str:
    """Return the flag of a field, the long one if it has one. The metavar of an argument."""
    spec = f.metadata.get("setting")
    if not isinstance(spec, Option) or spec.argument:
        return getattr(spec, "metavar", "") or f.name.upper()
    if spec.flag.startswith("--"):
        return spec.flag
    return f"-{f.name}" if len(f.name) == 1 else "--" + f.name.replace("_", "-")


def flag_by_name(kind: type[Options], name: str) -> str:
    """Return the flag of a field by its name, or an empty string without a name."""
    return field_flag(settings.fields_by_name(kind)[name]) if name else ""


class Options(Settings):
    """The base of configurations, whose options are parsed and checked when one is made.

    Raises:
        UsageError: a value of the wrong type or out of range, under its flag.
    """

    NOUN = "option"

    def __post_init__(self) -> None:
        with translate_errors(partial(flag_by_name, type(self))):
            super().__post_init__()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Return a configuration from a dictionary.

        Args:
            where: the file of the values, if there is one.

        Raises:
            UsageError: an unknown or missing key, or an invalid value.
        """
        try:
            return super().from_dict(values)
        except InvalidArgument as error:
            if not error.argument:  # an unknown key
                text = f"{where or 'configuration'}: {error.problem}"
                raise UsageError(text, error.hint, code="unknown_setting") from error
            f = settings.fields_by_name(cls)[error.argument]
            missing = (f"{where}: " if where else "") + error.message(field_flag(f))
            hint = f.metadata["setting"].help.removesuffix(".")
            raise UsageError(missing, hint, code="missing_argument") from error

    def to_dict(self, *, control: bool = True, places: bool = True) -> dict[str, Any]:
        """Return the fields that are set, as plain values, with or without control and place
        options."""
        omitted = {
            f.name
            for f, spec in option_fields(self)
            if (spec.control and not control) or (spec.place and not places)
        }
        return {k: value for k, value in super().to_dict().items() if k not in omitted}


def parse_options(kind: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the options of `kind` parsed. Files that they name are read here, once.

    Raises:
        UsageError: a value that cannot be parsed.
    """
    fields = settings.fields_by_name(kind)
    with translate_errors(partial(flag_by_name, kind)):
        return {
            k: settings.parse_field(fields[k], v) if k in fields else v for k, v in values.items()
        }


def from_text(f: dataclasses.Field[Any], text: str) -> int | float | str:
    """Return the value of a text for a field: a number where the field is one.

    Raises:
        UsageError: not a number, or out of range.
    """
    number: type[float] | None = {"int": int, "float": float}.get(settings.field_annotation(f))
    if number is None or f.metadata["setting"].parse:
        return text
    with translate_errors(lambda _: field_flag(f)):
        return settings.check_field(f, as_number(text, number))  # type: ignore[no-any-return]


def given_options(kind: type[Options], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are on a command line, with texts that are numbers as numbers.

    Raises:
        UsageError: not a number, or out of range.
    """
    return {
        f.name: from_text(f, value) if isinstance(value, str) else value
        for f, _ in option_fields(kind)
        if (value := typed[f.name]) not in (None, [], ())
    }


# -- arguments and TOML ----------------------------------------------------------------------------


def place_name(place: str) -> str:
    """Return a place on this machine by its last part. One on the hub whole."""
    return place if place.startswith("hf:") else Path(place).name or place


def to_arguments(
    config: object, names: Collection[str] | None = None, *, places: bool = True
) -> list[str]:
    """Return the command line that makes this configuration. Defaults are left out.

    Args:
        names: the fields to set; None for all.
        places: as the user passed them, or else only their names, for a page for others.
    """
    positional, flags = [], []
    for f, spec in option_fields(config):
        if names is not None and f.name not in names:
            continue
        value = getattr(config, f.name)
        if spec.place and not places and isinstance(value, str):
            value = place_name(value)
        if spec.argument:
            positional.append(str(value))
        elif value == f.default:
            continue
        elif isinstance(value, bool):
            flags.append(field_flag(f) if value else "--no-" + field_flag(f).removeprefix("--"))
        else:
            flag = spec.flag or field_flag(f)
            repeated = isinstance(value, tuple) and str(f.type).startswith("tuple[str")
            for entry in value if repeated else [value]:
                joined = ",".join(map(str, entry)) if isinstance(entry, tuple) else str(entry)
                flags += [flag, joined]
    return positional + flags


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML."""
    import tomli_w

    return tomli_w.dumps(values)


MOST_TOML = 10_000_000
"""The largest configuration file, in bytes. One may list betas."""


def flatten_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name, those of a table as `table.name`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        table = value if isinstance(value, Mapping) else None
        flat |= {f"{name}.{k}": v for k, v in table.items()} if table is not None else {name: value}
    return flat


def read_toml(path: str | Path, owner: str = "--config") -> dict[str, Any]:
    """Return the table in a TOML file, with any line ends, with or without a byte order mark.

    Args:
        owner: the option or the owner of the file, for errors.

    Raises:
        UsageError: the file cannot be read, is not a regular one, or is not TOML.
    """
    try:
        data = read_bounded(path, MOST_TOML)
    except (OSError, ValueError) as error:
        text = f"{owner} {show(path)}: {getattr(error, 'strerror', error)}"
        raise UsageError(text, code="config_unreadable", path=path) from error
    try:
        text = data.decode("utf-8-sig", "surrogateescape")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        text = f"{owner} {show(path)} is not TOML: {error}"
        raise UsageError(text, code="config_unreadable", path=path) from error
