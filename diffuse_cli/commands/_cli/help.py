"""`-h` and `--help`: options in groups, colored on a terminal, plain elsewhere.

Typer's own panels would draw boxes in files and in docs/cli.md, too, order groups by their first
option, and import every command to list them.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from diffuse_cli.commands._cli import Rows, is_terminal
from diffuse_cli.commands._cli.suggestions import unknown_command_error
from diffuse_cli.config.options import GROUPS
from diffuse_cli.core import InvalidArgument

WIDEST, LEFT = 120, 28
"""The most columns that are used, and the columns of the flags."""


def _print_short_help(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        typer.echo(context.command.short_page(context), nl=False)  # type: ignore[attr-defined]
        raise typer.Exit()


SHORT_HELP = typer.Option(
    False,
    "-h",
    is_eager=True,
    expose_value=False,
    callback=_print_short_help,
    help="Print a short help: the options that most people need.",
)


class HelpfulCommand(TyperCommand):
    """A command whose help has sections.

    Attributes:
        examples: command lines for its help.
    """

    examples: Sequence[str] = ()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page with every option."""
        paragraphs = (self.help or "").split("\n\n")
        sections = group_parameters(self.get_params(ctx))
        formatter.write(_page(_usage(ctx, sections), paragraphs, sections, self.examples))

    def short_page(self, ctx: Any) -> str:
        """Return one screen: the options of the first group, and the names of the others."""
        groups = group_parameters(self.params)
        other_groups = [name for name in groups if name not in ("Arguments", GROUPS[0])]
        needed = [row for row in groups[GROUPS[0]] if row[0] != "-h"]
        sections = {"Arguments": groups.get("Arguments", []), GROUPS[0]: needed}
        first = {title: rows for title, rows in sections.items() if rows}
        end = f"--help lists everything: {', '.join(other_groups)}."
        summary = (self.help or "").split("\n\n")[:1]
        return _page(_usage(ctx, groups), summary, first, self.examples, end)


class HelpfulGroup(TyperGroup):
    """The program, whose help lists its commands."""

    commands: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page with the commands and the options of the program."""
        formatter.write(self._page(ctx, group_parameters(self.get_params(ctx))))

    def short_page(self, ctx: Any) -> str:
        """Return the page with the commands."""
        return self._page(ctx, {})

    def _page(self, ctx: Any, options: Mapping[str, Rows]) -> str:
        chapters = {
            title: [(name, self.commands.about(name)) for name in names]
            for title, names in self.commands.chapters().items()
        }
        usage = f"{ctx.command_path} COMMAND [OPTIONS] [ARGUMENTS]"
        end = (
            f"{ctx.command_path} COMMAND -h shows the most used options, --help shows all of them."
        )
        return _page(usage, [self.help or ""], {**chapters, **options}, (), end)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, without making them."""
        return [*self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name. Completion leaves out an extension that is broken."""
        try:
            return self.commands.get(cmd_name)
        except InvalidArgument:
            if ctx.resilient_parsing:
                return None
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of this name.

        Raises:
            UsageError: there is none.
        """
        if args[0] not in self.commands and args[0][:1] != "-" and not ctx.resilient_parsing:
            raise unknown_command_error(args[0], self.commands)
        return super().resolve_command(ctx, args)


def group_parameters(parameters: Iterable[Any]) -> dict[str, Rows]:
    """Return rows of flags and help by the title of their section, in the order of `GROUPS`."""
    groups: dict[str, Rows] = {name: [] for name in ("Arguments", *GROUPS)}
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            groups["Arguments"].append((parameter.metavar, parameter.help))
        else:
            group = parameter.rich_help_panel or GROUPS[0]
            groups[group].append((_flags(parameter), parameter.help or ""))
    return {name: rows for name, rows in groups.items() if rows}


def _flags(parameter: Any) -> str:
    """`-o, --out FILE`, or `--flip / --no-flip`."""
    flags = ", ".join(sorted(parameter.opts, key=lambda flag: flag.startswith("--")))
    value = "" if parameter.is_flag else f" {parameter.metavar or 'TEXT'}"
    return " / ".join([flags + value, *parameter.secondary_opts])


def _usage(ctx: Any, sections: Mapping[str, Rows]) -> str:
    arguments = " ".join(name for name, _ in sections.get("Arguments", ()))
    return f"{ctx.command_path} [OPTIONS] {arguments}".strip()


def _page(
    usage: str,
    paragraphs: Iterable[str],
    sections: Mapping[str, Rows],
    examples: Sequence[str] = (),
    end: str = "",
) -> str:
    """Return a page. One with an `end` is short, with a line or two for each option."""
    terminal = is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"
    width = max(40, min(shutil.get_terminal_size().columns, WIDEST))
    inner = width - (4 if terminal else 2)
    tab = LEFT
    if end:
        tab = min(LEFT, max((len(f) for rows in sections.values() for f, _ in rows), default=0))
        sections = {title: [*_cut_rows(rows, inner - tab - 2)] for title, rows in sections.items()}
    blocks = {title: [*_table(rows, tab, inner)] for title, rows in sections.items()}
    if examples:
        blocks["Examples"] = [line for example in examples for line in _wrap(example, inner)]
    texts = [_wrap(" ".join(part.split()), width - 2) for part in paragraphs]
    if terminal:
        return _render_in_color(usage, texts, blocks, end, width)
    parts = [[f"Usage: {usage}"], *texts]
    parts += [[f"{title}:", *(f"  {line}" for line in lines)] for title, lines in blocks.items()]
    parts += [_wrap(end, width - 2)] if end else []
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _wrap(text: str, width: int) -> list[str]:
    """Return lines broken between words, but not at a hyphen or inside `[default: `."""
    joined = text.replace("[default: ", "[default:\0")
    lines = textwrap.wrap(joined, width, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def _table(rows: Rows, tab: int, width: int) -> Iterator[str]:
    """Yield lines of two columns."""
    for flags, text in rows:
        pairs = zip_longest(_wrap(flags, tab), _wrap(text, width - tab - 2), fillvalue="")
        yield from (f"{flag:<{tab}}  {words}".rstrip() for flag, words in pairs)


def _cut_rows(rows: Rows, width: int) -> Iterator[tuple[str, str]]:
    """Yield flags with the sentence of their help, and the default if both fit on two lines."""
    for flags, text in rows:
        sentence = text.partition(". ")[0].removesuffix(".") + "."
        default = text[text.rfind(" [default: ") :] if " [default: " in text else ""
        whole = sentence + default
        yield flags, whole if len(_wrap(whole, width)) <= 2 else sentence


def _render_in_color(
    usage: str,
    texts: Iterable[Sequence[str]],
    blocks: Mapping[str, Sequence[str]],
    end: str,
    width: int,
) -> str:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, highlight=False)
    console.print(Text.assemble(("Usage: ", "yellow"), (usage, "bold")))
    for lines in texts:
        console.print(Text("\n" + "\n".join(lines)))
    console.print()
    for title, lines in blocks.items():
        text = Text("\n".join(lines))
        text.highlight_regex(rf"(?m)^\S.{{1,{LEFT - 1}}}?(?=  |$)", "cyan")
        text.highlight_regex(r"(?m)^-\S*(?: [^A-Z\s]\S*)* (?P<yellow>[A-Z]\S*)")
        text.highlight_regex(r"(?sm)\[default: .*?\]$", "dim")
        console.print(Panel(text, title=title, title_align="left", border_style="dim"))
    if end:
        console.print(Text(end))
    return file.getvalue()
