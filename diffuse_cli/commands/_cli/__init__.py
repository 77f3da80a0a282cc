"""The command line of a command, made from the fields of its configuration."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.commands._cli.help import SHORT_HELP
from diffuse_cli.commands._cli.suggestions import suggest_value
from diffuse_cli.config import parsers
from diffuse_cli.config.options import (
    Option,
    Options,
    field_flag,
    from_dict,
    given_options,
    option,
    option_fields,
    parse_options,
    read_toml,
)
from diffuse_cli.core.settings import digits, field_annotation
from diffuse_cli.system import UsageError, lookup
from diffuse_cli.system.processes import rank

KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, kw_only=True)
class Universal(Options):
    """The options of every command."""

    config_file: str | None = option.run.optional(
        "Read options from a file.", flag="--config", metavar="TOML"
    )
    json: bool = option.output(False, "Print one JSON object on stdout.", control=True)
    quiet: bool = option.output(False, "Print only errors on stderr.", flag="-q", control=True)
    debug: bool = option.output(False, "Print the traceback of an error.", control=True)


def make_command(module: Any) -> Any:
    """Return the function that Typer calls for a command. Its parameters are the options. It
    appends its console to the `obj` of the context."""
    kind = module.CONFIG
    configure = getattr(module, "configure", lambda typed, file: from_dict(kind, {**file, **typed}))

    def command(context: typer.Context, **typed: Any) -> None:
        console = Console(
            quiet=bool(typed["quiet"]) or rank() > 0,
            as_json=bool(typed["json"]),
            debug=bool(typed["debug"]),
        )
        context.obj.append(console)
        path = typed["config_file"]
        given = given_options(kind, typed)
        filed = read_toml(path) if path is not None else {}
        check_names(kind, {**filed, **given})
        module.run(configure(given, filed), console)

    command.__doc__ = inspect.cleandoc(module.__doc__)
    parameters = [inspect.Parameter("context", KEYWORD, annotation=typer.Context)]
    parameters += _parameters(kind)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def check_names(kind: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse an unknown name before anything heavy is imported.

    Raises:
        UsageError: with the nearest name.
    """
    for f, spec in option_fields(kind):
        value = given.get(f.name)
        if spec.table and value is not None:
            value = parse_options(kind, {f.name: value})[f.name]
            if value is None:  # as a word
                continue
            table, flag = _table(spec.table), field_flag(f)
            for name in map(str, value if isinstance(value, (list, tuple)) else [value]):
                if name not in table and (hint := suggest_value(flag, name)):
                    raise UsageError(f"{flag}: there is no '{name}'", hint)
                lookup(table, name, flag)


def _table(table: str | tuple[str, ...]) -> Mapping[str, Any]:
    """Return the entries that an option names. Listing them imports no torch."""
    if isinstance(table, str):
        module, _, name = table.rpartition(".")
        table = getattr(import_module(f"diffuse_cli.{module}"), name)
    return table if isinstance(table, Mapping) else dict.fromkeys(table)


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """Arguments, then options: first a command's own, then those of its base classes."""
    bases: dict[str, int] = {}
    for i, base in enumerate(kind.__mro__):
        for name in inspect.get_annotations(base):
            bases.setdefault(name, i)
    ordered = sorted(option_fields(kind), key=lambda o: (not o[1].argument, bases[o[0].name]))
    short_help = inspect.Parameter("short_help", KEYWORD, default=SHORT_HELP, annotation=bool)
    return [*(_parameter(f, spec) for f, spec in [*ordered, *option_fields(Universal)]), short_help]


def _parameter(f: dataclasses.Field[Any], spec: Option) -> inspect.Parameter:
    """Return an option as Typer sees it: it parses truth values and lists, `from_text` numbers."""
    kind = field_annotation(f)
    repeated = kind.startswith("tuple[str")
    annotation: Any = (list[str] if repeated else bool if kind == "bool" else str) | None
    info: Any
    if spec.argument:
        info = typer.Argument(None, metavar=spec.metavar, help=spec.help, show_default=False)
    else:
        flags = [field_flag(f), *([spec.flag] if spec.flag[:2] not in ("", "--") else [])]
        if kind == "bool" and not spec.control and f.name != "overwrite":
            flags[0] += "/--no-" + flags[0].removeprefix("--")
        names = list(_table(spec.table))
        info = typer.Option(
            None,
            *dict.fromkeys(flags),
            help=_help(f, spec),
            show_default=False,
            metavar=spec.metavar or METAVARS.get(spec.parse or kind) or ("NAME" if names else None),
            rich_help_panel=spec.group,
            autocompletion=(lambda: names) if names else None,
        )
    return inspect.Parameter(f.name, KEYWORD, default=info, annotation=annotation)


METAVARS: dict[Any, str] = {
    "int": "N",
    "float": "X",
    parsers.parse_size: "H[xW]",
    parsers.parse_length: "H[xW]",
    parsers.parse_color: "COLOR",
    parsers.parse_bytes: "SIZE",
    parsers.parse_betas: "FILE",
    parsers.parse_file: "FILE",
    parsers.parse_interval: "LOW,HIGH",
    parsers.parse_timesteps: "N|all",
    parsers.parse_ints: "N,...",
    parsers.parse_names: "NAME",
    parsers.parse_listed: "NAME,...",
    parsers.parse_settings: "NAME=VALUE",
    parsers.parse_scales: "SCALE,...",
}
"""Placeholders of values in `--help`, by its parser or the kind of its field."""


def _help(f: dataclasses.Field[Any], spec: Option) -> str:
    """Return the help of a field: its sentence, the names it accepts, its default."""
    parts = [spec.help]
    if spec.table == "config.presets.PRESETS":
        from diffuse_cli.config.presets import PRESETS

        presets = PRESETS.entries  # entries of other packages are not imported for their help
        named = (f"{k}: {presets[k].help}" if k in presets else k for k in PRESETS)
        parts.append("; ".join(named) + ".")
    elif spec.table:
        parts.append(f"One of: {', '.join(_table(spec.table))}.")
    if default := _default_text(f, spec):
        parts.append(f"[default: {default}]")
    return " ".join(parts)


def _default_text(f: dataclasses.Field[Any], spec: Option) -> str:
    """Return the default as `--help` prints it, or an empty string."""
    if spec.shown or any(f.default is none for none in (dataclasses.MISSING, None, False)):
        return spec.shown
    if f.default is True:
        return "on"
    if isinstance(f.default, tuple):
        return ",".join(map(str, f.default))
    return digits(f.default) if isinstance(f.default, float) else str(f.default)
