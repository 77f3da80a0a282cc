"""A command line made from the fields of a configuration, where each option is written once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import typer

from diffuse_cli.config import DrawConfig
from diffuse_cli.console import Console
from diffuse_cli.core.samplers import sampler_options
from diffuse_cli.errors import lookup
from diffuse_cli.options import (
    Option,
    digits,
    flag_of,
    from_dict,
    from_text,
    options,
    parsed,
    read_toml,
)
from diffuse_cli.parsing import MODEL_WEIGHTS
from diffuse_cli.runtime import rank


def _core(module: str, name: str) -> Callable[[], Mapping[str, Any]]:
    def table() -> Mapping[str, Any]:
        from importlib import import_module

        return getattr(import_module(f"diffuse_cli.{module}"), name)  # type: ignore[no-any-return]

    return table


def _names(module: str, name: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: dict.fromkeys(_core(module, name)())


TABLES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "schedules": _core("core.schedules", "SCHEDULES"),
    "spacings": _core("core.spacings", "SPACINGS"),
    "targets": _core("core.targets", "TARGETS"),
    "variances": _core("core.variances", "VARIANCES"),
    "losses": _core("core.losses", "LOSSES"),
    "weightings": _core("core.losses", "WEIGHTINGS"),
    "timestep_draws": _core("core.timesteps", "TIMESTEP_DRAWS"),
    "samplers": _core("core.samplers", "SAMPLERS"),
    "presets": _core("presets", "PRESETS"),
    "media": _core("media", "MEDIA"),
    "networks": _core("core.networks", "NETWORKS"),
    "precisions": _core("runtime", "PRECISIONS"),
    "trackers": _names("runtime", "TRACKERS"),
    "features": _core("features", "FEATURES"),
    "ema_metrics": lambda: dict.fromkeys(("kid", "held-out")),
    "formats": _core("interop", "FORMATS"),
    "attention_orders": lambda: dict.fromkeys(("legacy", "new")),
    "weights": lambda: dict.fromkeys(MODEL_WEIGHTS),
}
"""The tables that options choose from; none of them imports torch to be listed."""

UNIVERSAL: dict[str, Any] = {
    "config_file": typer.Option(
        None, "--config", metavar="TOML", help="Read options from a file.", rich_help_panel="Run"
    ),
    "json": typer.Option(
        False, "--json", help="Print one JSON object on stdout.", rich_help_panel="Output"
    ),
    "quiet": typer.Option(
        False, "--quiet", "-q", help="Print nothing on stderr but errors.", rich_help_panel="Output"
    ),
    "debug": typer.Option(
        False, "--debug", help="Print the traceback of an error.", rich_help_panel="Output"
    ),
}


def make_command(name: str, module: Any, set_console: Callable[[Console], None]) -> Any:
    """The function that Typer calls for a command, with a signature made from its options."""
    kind = module.CONFIG
    configure = getattr(module, "configure", lambda typed, file: from_dict(kind, {**file, **typed}))

    def command(**typed: Any) -> None:
        console = Console(
            quiet=typed.pop("quiet") or rank() > 0,
            as_json=typed.pop("json"),
            debug=typed.pop("debug"),
        )
        set_console(console)
        path = typed.pop("config_file")
        given = {
            f.name: from_text(f, value) if isinstance(value, str) else value
            for f, _ in options(kind)
            if (value := typed[f.name]) is not None and value != []
        }
        filed = read_toml(path) if path is not None else {}
        check_names(kind, {**filed, **given})
        module.run(configure(given, filed), console)

    command.__doc__ = inspect.cleandoc(module.__doc__)
    command.__signature__ = inspect.Signature(_parameters(kind))  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in _parameters(kind)}
    return command


def check_names(kind: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse an unknown name before anything heavy is imported.

    Raises:
        UsageError: with the nearest name.
    """
    for f, spec in options(kind):
        value = given.get(f.name)
        if spec.table and value is not None:
            value = parsed(kind, {f.name: value})[f.name]
            for name in value if isinstance(value, (list, tuple)) else [value]:
                lookup(TABLES[spec.table](), str(name), flag_of(f))


def check_sampler(config: DrawConfig) -> None:
    """Refuse options that the given sampler does not take, before anything heavy is imported.

    A sampler that the model file recommends is checked by `resolve`.

    Raises:
        InvalidArgument: an option that it does not take.
    """
    if config.sampler is not None:
        sampler_options(config.sampler, **config.sampler_options)


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    own: dict[str, int] = {}  # how far from its command the class of a field is
    for i, base in enumerate(kind.__mro__):
        for name in inspect.get_annotations(base):
            own.setdefault(name, i)
    ordered = sorted(options(kind), key=lambda o: (not o[1].argument, own[o[0].name]))
    found = [_parameter(f, spec) for f, spec in ordered]
    for name, default in UNIVERSAL.items():
        annotation = str | None if default.default is None else bool
        found.append(_keyword(name, default, annotation))
    return found


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _parameter(f: dataclasses.Field[Any], spec: Option) -> inspect.Parameter:
    kind, annotation = _annotation(f, spec)
    if spec.argument:
        info = typer.Argument(None, metavar=spec.metavar, help=spec.help, show_default=False)
        return _keyword(f.name, info, str | None)
    flags = [flag_of(f), *([spec.flag] if spec.flag[:2] not in ("", "--") else [])]
    if kind == "bool" and not spec.control and f.name != "overwrite":
        flags[0] += "/--no-" + flags[0].removeprefix("--")
    names = list(TABLES[spec.table]()) if spec.table else []
    info = typer.Option(
        None,
        *dict.fromkeys(flags),
        help=_help(f, spec),
        show_default=False,
        metavar=spec.metavar or ("NAME" if spec.table else METAVARS.get(kind)),
        rich_help_panel=spec.group,
        autocompletion=(lambda: names) if names else None,
    )
    return _keyword(f.name, info, annotation)


METAVARS = {"int": "N", "float": "X"}
"""What stands for a value in `--help`, by the kind of its field."""


def _annotation(f: dataclasses.Field[Any], spec: Option) -> tuple[str, Any]:
    """The field's kind, and the type that Typer parses: `from_text` makes numbers of text."""
    kind = str(f.type).removesuffix(" | None")
    if kind.startswith("tuple[str"):
        return kind, list[str] | None
    return kind, (bool if kind == "bool" else str) | None


def _help(f: dataclasses.Field[Any], spec: Option) -> str:
    """The help of a field: its sentence, the names it may have, its default."""
    parts = [spec.help]
    if spec.table == "presets":
        from diffuse_cli.presets import PRESETS

        own = PRESETS.own  # entries of other packages are not imported for their help
        named = (f"{k}: {own[k].help}" if k in own else k for k in PRESETS)
        parts.append("; ".join(named) + ".")
    elif spec.table:
        parts.append(f"One of: {', '.join(TABLES[spec.table]())}.")
    if shown := _shown(f, spec):
        parts.append(f"[default: {shown}]")
    return " ".join(parts)


def _shown(f: dataclasses.Field[Any], spec: Option) -> str:
    """The default as `--help` prints it; empty where there is none to speak of."""
    if spec.shown:
        return spec.shown
    if f.default is dataclasses.MISSING or f.default is None or f.default is False:
        return ""
    if f.default is True:
        return "on"
    if isinstance(f.default, tuple):
        return ",".join(map(str, f.default))
    return digits(f.default) if isinstance(f.default, float) else str(f.default)
