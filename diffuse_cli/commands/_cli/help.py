"""`--help`: options in groups, coloured on a terminal, plain elsewhere.

Typer's own panels would draw boxes in files and in docs/cli.md, too, order groups by their first
option, and import every command to list them.
"""

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

from diffuse_cli.commands._cli.console import Rows, is_terminal
from diffuse_cli.commands._cli.suggestions import no_command
from diffuse_cli.config.options import GROUPS

WIDEST, LEFT = 100, 28
"""The most columns that are used, and the columns of the flags."""


class HelpfulCommand(TyperCommand):
    """A command whose help has sections."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(_page(ctx, "", self.help or "", grouped(self.get_params(ctx))))


class HelpfulGroup(TyperGroup):
    """The program, whose help lists its commands."""

    commands: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        rows = [(name, self.commands.about(name)) for name in self.commands]
        sections = {"Commands": rows, **grouped(self.get_params(ctx))}
        formatter.write(_page(ctx, "COMMAND [ARGS]...", self.help or "", sections))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of this name.

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
    width = max(40, min(columns, 80))
    lines = [f"Usage: {usage}"]
    for paragraph in paragraphs:
        lines += ["", *_wrap(paragraph, width - 2)]
    for title, rows in sections.items():
        lines += ["", f"{title}:", *(f"  {line}" for line in _table(rows, width - 2))]
    return "\n".join(lines) + "\n"


def _on_terminal() -> bool:
    return is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"


def _wrap(text: str, width: int) -> list[str]:
    """Return lines broken between words, but not at a hyphen or inside `[default: `."""
    joined = text.replace("[default: ", "[default:\0")
    lines = textwrap.wrap(joined, width, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def _table(rows: Rows, width: int) -> Iterator[str]:
    """Yield lines of two columns."""
    for left, text in rows:
        both = zip_longest(_wrap(left, LEFT), _wrap(text, width - LEFT - 2), fillvalue="")
        yield from (f"{flags:<{LEFT}}  {words}".rstrip() for flags, words in both)


def _colourful(usage: str, paragraphs: list[str], sections: dict[str, Rows], width: int) -> str:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, highlight=False)
    console.print(Text.assemble(("Usage: ", "yellow"), (usage, "bold")))
    for paragraph in paragraphs:
        console.print(Text("\n" + paragraph))
    console.print()
    for title, rows in sections.items():
        lines = Text("\n".join(_table(rows, width - 4)))
        lines.highlight_regex(rf"(?m)^\S.{{1,{LEFT - 1}}}", "cyan")
        lines.highlight_regex(rf"(?m)^-[^A-Z\n]{{0,{LEFT - 3}}} (?P<yellow>[A-Z]\S*)")
        lines.highlight_regex(r"(?sm)\[default: .*?\]$", "dim")
        console.print(Panel(lines, title=title, title_align="left", border_style="dim"))
    return file.getvalue()
