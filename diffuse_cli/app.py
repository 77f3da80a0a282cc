"""The command line: builds the Typer app from commands/, and handles every error in one place."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import typer
import typer.main
from typer.exceptions import TyperException

from diffuse_cli.commands import COMMANDS
from diffuse_cli.commands._cli import Console
from diffuse_cli.commands._cli.help import SHORT_HELP, HelpfulCommand, HelpfulGroup
from diffuse_cli.commands._cli.suggestions import explain, suggest_value
from diffuse_cli.config import options, parsers
from diffuse_cli.config.options import Option, Options, option
from diffuse_cli.core import InvalidArgument
from diffuse_cli.core.registry import SkippedExtension
from diffuse_cli.core.settings import digits, field_annotation
from diffuse_cli.system import (
    DiffuseError,
    OutputError,
    UsageError,
    __version__,
    is_out_of_memory,
    lookup,
    processes,
    to_usage_error,
)

CHAPTERS = {
    "Start": ("train", "sample", "noise-demo"),
    "Use a model": ("inpaint", "upscale", "restore", "vary", "interpolate"),
    "Improve a model": ("tune", "ema", "distill"),
    "Evaluate": ("eval", "compare"),
    "Exchange and inspect": ("info", "convert", "push"),
}
"""Names of the commands by task, in the order of the help."""


@functools.cache
def build_command(name: str) -> Any:
    """Return the command of this name, made once: a process may run many command lines."""
    module = COMMANDS[name]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=HelpfulCommand)(make_command(module))
    command: Any = typer.main.get_command(app)
    command.examples = getattr(module, "EXAMPLES", ())
    return command


class Commands(Mapping[str, Any]):
    """The commands by name, each made when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        return build_command(name)

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __iter__(self) -> Iterator[str]:
        return (name for names in self.chapters().values() for name in names)

    def __len__(self) -> int:
        return len(COMMANDS)

    def chapters(self) -> dict[str, tuple[str, ...]]:
        """Return the names by chapter. Those of other packages are the last."""
        chapter_names = {name for names in CHAPTERS.values() for name in names}
        added = tuple(name for name in COMMANDS if name not in chapter_names)
        return {**CHAPTERS, **({"Other packages": added} if added else {})}

    def about(self, name: str) -> str:
        """Return one sentence about a command, for which it need not be made."""
        return COMMANDS.read_summary(name)


@functools.cache
def build() -> Any:
    """Return the program, with a command for each entry of COMMANDS, which appends its console to
    the `obj` of its context."""
    app = typer.Typer(
        name="diffuse",
        cls=HelpfulGroup,
        help="Train, sample, measure and demonstrate denoising diffusion models.",
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
        short_help: bool = SHORT_HELP,
    ) -> None:
        """Train, sample, measure and demonstrate denoising diffusion models."""
        if context.invoked_subcommand is None:
            typer.echo(context.get_help(), err=True)
            raise typer.Exit(UsageError.exit_code)

    group: Any = typer.main.get_command(app)
    group.commands = Commands()
    return group


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"diffuse {__version__}")
        raise typer.Exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code (listed in docs/cli.md)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for what its encoding lacks
    words = sys.argv[1:] if arguments is None else arguments
    consoles = [Console(as_json="--json" in words)]  # until the command's own is known
    try:
        with processes.raise_signals(), _print_skipped(consoles):
            code = build()(arguments, prog_name="diffuse", standalone_mode=False, obj=consoles)
        return int(code or 0)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        failure = _explain_error(error, words)
        if failure is None:
            traceback.print_exc()
            return 1
        if processes.rank() == 0 or not failure.of_all:
            consoles[-1].fail(failure)
        return failure.exit_code


def _explain_error(error: Exception, words: Sequence[str]) -> DiffuseError | None:
    """Return an error of a command line as one for users, None for a bug."""
    if isinstance(error, DiffuseError):
        return error
    if isinstance(error, InvalidArgument):
        return to_usage_error(error)
    if isinstance(error, TyperException):
        return explain(error)
    if is_out_of_memory(error):
        hint = _suggest_less_memory(words)
        return UsageError("out of memory", hint, code="out_of_memory").mark_local()
    if isinstance(error, OSError):
        return OutputError(str(error), code="output_failed", path=error.filename or "")
    return processes.lost_process_error(error)


@contextlib.contextmanager
def _print_skipped(consoles: Sequence[Console]) -> Iterator[None]:
    """Print one line for each extension that is skipped inside the block."""
    show, lines = warnings.showwarning, set[str]()

    def print_once(
        message: Warning | str, category: type[Warning], *place: Any, **more: Any
    ) -> None:
        if not issubclass(category, SkippedExtension):
            show(message, category, *place, **more)
        elif str(message) not in lines and processes.rank() == 0:
            lines.add(str(message))
            consoles[-1].warn(str(message))

    warnings.showwarning = print_once
    try:
        yield
    finally:
        warnings.showwarning = show


def _suggest_less_memory(words: Sequence[str]) -> str:
    """Suggest how a command takes less memory."""
    config = next((COMMANDS[word].CONFIG for word in words if word in COMMANDS), None)
    names = {f.name for f, _ in options.option_fields(config)} if config else set()
    if "batch_size" in names:
        return f"Try a smaller --batch-size{' or --size' if 'size' in names else ''}"
    return "End other programs, or use a machine with more memory"


def run() -> None:
    """Run the command line of the process, as the entry point `diffuse`."""
    processes.exit_on_signals()
    processes.shorten_waits()
    code = main()
    if processes.world_size() > 1:
        _exit_at_once(code)
    sys.exit(code)


def _exit_at_once(code: int) -> NoReturn:
    """End a process of several at once, without taking the interpreter apart.

    DistributedDataParallel keeps gloo's threads alive beyond `destroy_process_group`. One that
    drops its last tensor while the interpreter is being taken apart aborts the process.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


# -- the command line of a command ----------------------------------------------------------------

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
    configure = getattr(module, "configure", lambda typed, file: kind.from_dict({**file, **typed}))

    def command(context: typer.Context, **typed: Any) -> None:
        console = Console(
            quiet=bool(typed["quiet"]) or processes.rank() > 0,
            as_json=bool(typed["json"]),
            debug=bool(typed["debug"]),
        )
        context.obj.append(console)
        path = typed["config_file"]
        given = options.given_options(kind, typed)
        filed = options.read_toml(path) if path is not None else {}
        check_names(kind, {**filed, **given})
        try:
            module.run(configure(given, filed), console)
        except UsageError as error:
            if error.code == "unknown_setting":
                error.path = error.path or path or ""
            raise

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
    for f, spec in options.option_fields(kind):
        value = given.get(f.name)
        if spec.table and value is not None:
            value = options.parse_options(kind, {f.name: value})[f.name]
            if value is None:  # as a word
                continue
            table, flag = _table(spec.table), options.field_flag(f)
            for name in map(str, value if isinstance(value, (list, tuple)) else [value]):
                if name not in table and (hint := suggest_value(flag, name)):
                    raise UsageError(f"{flag}: there is no '{name}'", hint, code="unknown_name")
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
    ordered = sorted(
        options.option_fields(kind), key=lambda o: (not o[1].argument, bases[o[0].name])
    )
    short_help = inspect.Parameter("short_help", KEYWORD, default=SHORT_HELP, annotation=bool)
    return [
        *(_parameter(f, spec) for f, spec in [*ordered, *options.option_fields(Universal)]),
        short_help,
    ]


def _parameter(f: dataclasses.Field[Any], spec: Option) -> inspect.Parameter:
    """Return an option as Typer sees it: it parses truth values and lists, `from_text` numbers."""
    kind = field_annotation(f)
    repeated = kind.startswith("tuple[str")
    annotation: Any = (list[str] if repeated else bool if kind == "bool" else str) | None
    info: Any
    if spec.argument:
        info = typer.Argument(None, metavar=spec.metavar, help=spec.help, show_default=False)
    else:
        flags = [options.field_flag(f), *([spec.flag] if spec.flag[:2] not in ("", "--") else [])]
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
        presets: Any = _table(spec.table)  # those of other packages are not imported for their help
        named = (f"{k}: {presets[k].help}" if k in presets.entries else k for k in presets)
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
