"""The command line: builds the Typer app from commands/, and handles every error in one place."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import typer
import typer.main
from typer.exceptions import TyperException

from diffuse_cli.commands import COMMANDS
from diffuse_cli.commands._cli import make_command
from diffuse_cli.commands._cli.console import Console, escape_unencodable
from diffuse_cli.commands._cli.help import SHORT_HELP, HelpfulCommand, HelpfulGroup
from diffuse_cli.commands._cli.suggestions import explain
from diffuse_cli.config.options import option_fields
from diffuse_cli.core import InvalidArgument
from diffuse_cli.core.registry import SkippedExtension
from diffuse_cli.system import DiffuseError, OutputError, UsageError, __version__, to_usage_error
from diffuse_cli.system.memory import is_out_of_memory
from diffuse_cli.system.processes import (
    exit_on_signals,
    lost_process_error,
    raise_signals,
    rank,
    shorten_waits,
    world_size,
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
def _build_command(name: str) -> Any:
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
        return _build_command(name)

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
        escape_unencodable(stream)
    consoles = [Console()]
    try:
        with raise_signals(), _print_skipped(consoles):
            program, name = build(), "diffuse"
            code = program(arguments, prog_name=name, standalone_mode=False, obj=consoles)
        return int(code or 0)
    except DiffuseError as error:
        return _report_error(consoles[-1], error)
    except InvalidArgument as error:
        return _report_error(consoles[-1], to_usage_error(error))
    except TyperException as error:
        return _report_error(consoles[-1], explain(error))
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if is_out_of_memory(error):
            words = sys.argv[1:] if arguments is None else arguments
            return _report_error(
                consoles[-1], UsageError("out of memory", _suggest_less_memory(words)).mark_local()
            )
        if isinstance(error, OSError):
            return _report_error(consoles[-1], OutputError(str(error)))
        if process_error := lost_process_error(error):
            return _report_error(consoles[-1], process_error)
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _print_skipped(consoles: Sequence[Console]) -> Iterator[None]:
    """Print one line for each extension that is skipped inside the block."""
    show, lines = warnings.showwarning, set[str]()

    def print_once(
        message: Warning | str, category: type[Warning], *place: Any, **more: Any
    ) -> None:
        if not issubclass(category, SkippedExtension):
            show(message, category, *place, **more)
        elif str(message) not in lines and rank() == 0:
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
    names = {f.name for f, _ in option_fields(config)} if config else set()
    if "batch_size" in names:
        return f"Try a smaller --batch-size{' or --size' if 'size' in names else ''}"
    return "End other programs, or use a machine with more memory"


def _report_error(console: Console, error: DiffuseError) -> int:
    if rank() == 0 or not error.of_all:
        console.fail(error)
    return error.exit_code


def run() -> None:
    """Run the command line of the process, as the entry point `diffuse`."""
    exit_on_signals()
    shorten_waits()
    code = main()
    if world_size() > 1:
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
