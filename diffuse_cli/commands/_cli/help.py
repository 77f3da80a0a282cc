"""`--help`: options in groups, coloured on a terminal, plain elsewhere."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

from typer.core import TyperCommand, TyperGroup

from diffuse_cli.commands._cli.console import is_terminal
from diffuse_cli.commands._cli.suggestions import no_command
from diffuse_cli.config.options import GROUPS

WIDEST, LEFT = 100, 28
"""The most columns that are used, and the columns of the flags."""

Rows = list[tuple[str, str]]


class Command(TyperCommand):
    """A command whose help has sections."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(_page(ctx, "", self.help or "", grouped(self.get_params(ctx))))


class Group(TyperGroup):
    """The program, whose help lists its commands."""

    commands: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        rows = [(name, self.commands.about(name)) for name in self.commands]
        sections = {"Commands": rows, **grouped(self.get_params(ctx))}
        formatter.write(_page(ctx, "COMMAND [ARGS]...", self.help or "", sections))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of this name.

        Raises:
            UsageError: there is none.
        """
        if args[0] not in self.commands and args[0][:1] != "-" and not ctx.resilient_parsing:
            raise no_command(args[0], self.commands)
        return super().resolve_command(ctx, args)


def grouped(parameters: Iterable[Any]) -> dict[str, Rows]:
    """Rows of flags and help by the title of their section, in the order of `GROUPS`."""
    found: dict[str, Rows] = {name: [] for name in ("Arguments", *GROUPS)}
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            found["Arguments"].append((parameter.metavar, parameter.help))
        else:
            group = parameter.rich_help_panel or GROUPS[0]
            found[group].append((_flags(parameter), parameter.help or ""))
    return {name: rows for name, rows in found.items() if rows}


def _flags(parameter: Any) -> str:
    """`-o, --out FILE`, or `--flip / --no-flip`."""
    flags = ", ".join(sorted(parameter.opts, key=lambda flag: flag.startswith("--")))
    value = "" if parameter.is_flag else f" {parameter.metavar or 'TEXT'}"
    return " / ".join([flags + value, *parameter.secondary_opts])


def _page(ctx: Any, rest: str, text: str, sections: dict[str, Rows]) -> str:
    arguments = " ".join([rest, *(name for name, _ in sections.get("Arguments", ()))]).strip()
    usage = f"{ctx.command_path} [OPTIONS] {arguments}".strip()
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    columns = shutil.get_terminal_size().columns
    if _on_terminal():
        return _colourful(usage, paragraphs, sections, max(40, min(columns, WIDEST)))
    return "\n".join(_plain(usage, paragraphs, sections, max(40, min(columns, 80)))) + "\n"


def _on_terminal() -> bool:
    return is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"


def _wrap(text: str, width: int) -> list[str]:
    """Lines broken between words, but not at a hyphen or inside `[default: `."""
    joined = text.replace("[default: ", "[default:\0")
    lines = textwrap.wrap(joined, width, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def _plain(
    usage: str, paragraphs: list[str], sections: dict[str, Rows], width: int
) -> Iterator[str]:
    yield f"Usage: {usage}"
    for paragraph in paragraphs:
        yield ""
        yield from _wrap(paragraph, width - 2)
    for title, rows in sections.items():
        yield ""
        yield f"{title}:"
        for left, text in rows:
            both = zip_longest(_wrap(left, LEFT), _wrap(text, width - LEFT - 4), fillvalue="")
            yield from (f"  {flags:<{LEFT}}  {words}".rstrip() for flags, words in both)


def _colourful(usage: str, paragraphs: list[str], sections: dict[str, Rows], width: int) -> str:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    console.print(Text.assemble(("Usage: ", "yellow"), (usage, "bold")))
    for paragraph in paragraphs:
        console.print(Text("\n" + paragraph))
    console.print()
    for title, rows in sections.items():
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=LEFT, no_wrap=True)
        table.add_column()
        for left, text in rows:
            flags = Text("\n".join(_wrap(left, LEFT)), "cyan")
            flags.highlight_regex(r"(?<=\s)[A-Z].*", "yellow")
            words = Text("\n".join(_wrap(text, width - LEFT - 6)))
            words.highlight_regex(r"(?s)\[default: .*\]", "dim")
            table.add_row(flags, words)
        console.print(Panel(table, title=title, title_align="left", border_style="dim"))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
