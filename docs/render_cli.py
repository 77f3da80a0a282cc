"""Render the help of every command into docs/cli.md and diffuse.1, which a test compares with it.

python docs/render_cli.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from diffuse_cli import __version__
from diffuse_cli.app import build, main
from diffuse_cli.commands._cli.help import group_parameters
from diffuse_cli.config.options import GROUPS
from diffuse_cli.system.errors import CODES

PAGE, MANUAL = Path(__file__).with_name("cli.md"), Path(__file__).with_name("diffuse.1")
HEAD = """# The command line

Made by `python docs/render_cli.py` from the program's own help; a test keeps the two equal.
A flag wins over a file given with `--config`, and the file over the defaults. stdout has only the
result: one path per line, or what a command describes (the tables of `eval` and `info`, the
configuration of `--dry-run`). With `--json` it is one JSON object. On a terminal, one line replaces
more than four paths. It has the number of files and their folder.

Exit codes: 0 ok · 1 a bug, with its traceback · 2 usage or configuration · 3 data unusable or
missing · 4 model file rejected or missing · 5 output exists, is not writable, or other I/O ·
6 divergence · 75 another run holds the output · 76 one of several processes is gone ·
130 interrupted · 143 terminated.

A command that fails, except with exit code 1, prints one line on stderr. With `--json` it also
prints an object on stdout, `{"error": {"code", "option", "path", "message", "hint"}}`, whose codes
are listed [below](#error-codes). Fields that do not apply are `null`. The keys of a result are in
[File formats](formats.md#the-object-of---json).
"""

ERRORS = """
## Error codes

| `code` | meaning |
|---|---|
{rows}
"""


SHARED = """
## Shared options

Every command has these options:

```
{every}
```

Several commands have these options, and list their names:

```
{several}
```
"""
TITLES = [f"{title}:" for title in GROUPS]
SEVERAL = 4
"""The fewest commands that share an option of the section above."""

Entry = tuple[str, ...]
"""Lines of an option in the help."""


def help_of(*command: str) -> str:
    """Return the output of `diffuse COMMAND --help` at 80 columns."""
    os.environ["COLUMNS"] = "80"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([*command, "--help"])
    return text.getvalue().strip()


def entries_of(paragraph: str) -> list[Entry]:
    """Return the options of a paragraph of the help, below its title."""
    found: list[list[str]] = []
    for line in paragraph.splitlines()[1:]:
        if line.startswith("  -") and not (found and found[-1][-1][:30].rstrip().endswith("/")):
            found.append([])
        if found:
            found[-1].append(line)
    return [*map(tuple, found)]


def flag_of(entry: Entry) -> str:
    """Return the name of an option: `--out` of `-o, --out FILE`, `-n` of `-n N`."""
    names = re.findall(r"(?<![\w-])--?[a-z][\w-]*", entry[0][:30])
    return next((name for name in names if name.startswith("--")), names[0])


def groups_of(text: str) -> dict[str, list[Entry]]:
    """Return the options of a help by the title of their group."""
    parts = {part.splitlines()[0]: part for part in text.split("\n\n")}
    return {title: entries_of(parts[title]) for title in TITLES if title in parts}


def shared_options(helps: Iterable[str]) -> dict[str, dict[Entry, int]]:
    """Return the options that at least `SEVERAL` commands describe in the same words, by group.

    If such descriptions differ, the most frequent one is shared, or none if there are two.
    """
    counts: dict[str, Counter[Entry]] = {title: Counter() for title in TITLES}
    for text in helps:
        for title, entries in groups_of(text).items():
            counts[title].update(entries)
    frequencies: dict[str, list[int]] = defaultdict(list)
    for entry, n in chain.from_iterable(group.items() for group in counts.values()):
        frequencies[flag_of(entry)].append(n)

    def is_shared(entry: Entry, n: int) -> bool:
        others = frequencies[flag_of(entry)]
        return n >= SEVERAL and n == max(others) and others.count(n) == 1

    return {
        title: {entry: n for entry, n in group.items() if is_shared(entry, n)}
        for title, group in counts.items()
    }


def listed(groups: Mapping[str, Iterable[Entry]]) -> str:
    """Return the text of options in groups, without empty groups."""
    blocks = ([title, *chain.from_iterable(entries)] for title, entries in groups.items())
    return "\n\n".join("\n".join(block) for block in blocks if len(block) > 1)


def section(name: str, text: str, shared: Mapping[str, Mapping[Entry, int]], every: int) -> str:
    """Return the section of a command: its help without shared options, and their names.

    Args:
        every: the number of commands. Options of all are not named.
    """
    parts, names = [], []
    for part in text.split("\n\n"):
        title = part.splitlines()[0]
        if title in TITLES:
            known = shared[title]
            names += [flag_of(e) for e in entries_of(part) if 0 < known.get(e, 0) < every]
            part = listed({title: [e for e in entries_of(part) if e not in known]})
        parts.append(part)
    body = "\n\n".join(filter(None, parts))
    line = f"[Shared options](#shared-options): {', '.join(f'`{name}`' for name in sorted(names))}."
    end = "\n".join(["", *textwrap.wrap(line, 100, break_on_hyphens=False), ""]) if names else ""
    return f"\n## diffuse {name}\n\n```\n{body}\n```\n{end}"


def render() -> str:
    """Return the whole page."""
    helps = {name: help_of(name) for name in build().commands}
    shared, every = shared_options(helps.values()), len(helps)
    in_every, in_several = (
        {
            title: [entry for entry, n in group.items() if (n == every) == wanted]
            for title, group in shared.items()
        }
        for wanted in (True, False)
    )
    return "".join([
        HEAD,
        f"\n## diffuse\n\n```\n{help_of()}\n```\n",
        SHARED.format(every=listed(in_every), several=listed(in_several)),
        *(section(name, text, shared, every) for name, text in helps.items()),
        ERRORS.format(rows="\n".join(f"| `{code}` | {text} |" for code, text in CODES.items())),
    ])  # fmt: skip


# -- the man page --------------------------------------------------------------------------------

DATE = "2026-11-27"
TOP = f"""\
.\\" Made by python docs/render_cli.py from the program's own help.
.TH DIFFUSE 1 {DATE} "diffuse {__version__}" "User Commands"
.SH NAME
diffuse \\- train, sample, measure and demonstrate denoising diffusion models
.SH SYNOPSIS
.B diffuse
.I COMMAND
.RI [ OPTIONS ]
.RI [ ARGUMENTS ]
.SH DESCRIPTION
.B diffuse
trains, samples and measures denoising diffusion models
on a folder of images, arrays or sounds.
A flag wins over a file given with
.BR \\-\\-config ,
and the file over the defaults.
Results go to standard output, everything else to standard error.
"""
VARIABLES = {
    "DIFFUSE_CACHE": "Folder of the cache of features; empty for none. [default: ~/.cache/diffuse]",
    "DIFFUSE_WEIGHTS": "Folder with the weights of feature networks.",
    "NO_COLOR": "If it is set, nothing is colored.",
    "OMP_NUM_THREADS": "Threads that compute.",
}


def printed(text: str) -> str:
    """Lines that troff prints as this text."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    lines = textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rf"\&{line}" if line[0] in ".'" else line for line in lines) or r"\&"


def entries(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A paragraph with its tag for each row."""
    for tag, text in rows:
        yield f".TP\n.B {printed(tag)}\n{printed(text)}"


def chapter(name: str, command: Any, root: Any) -> Iterator[str]:
    """A command: its usage, what it does, and its options by group."""
    found = group_parameters(
        command.get_params(typer.Context(command, info_name=name, parent=root))
    )
    arguments = " ".join(tag for tag, _ in found.get("Arguments", ()))
    yield f'.SH "DIFFUSE {printed(name.upper())}"\n.B diffuse {printed(name)}'
    yield f'.RI [ OPTIONS ] " {printed(arguments)}"'
    for paragraph in command.help.split("\n\n"):
        yield ".PP\n" + printed(paragraph)
    for title, rows in found.items():
        yield f'.SS "{title}"'
        yield from entries(rows)
    yield '.SS "Examples"'
    yield from (f".PP\n{printed(example)}" for example in command.examples)


def codes() -> list[tuple[str, str]]:
    """Exit codes and what they mean, as docs/cli.md has them."""
    (listed,) = re.findall(r"Exit codes: (.*)\.\n", " ".join(HEAD.split("\n\n")[2].split()) + "\n")
    return [tuple(code.split(" ", 1)) for code in listed.split(" · ")]  # type: ignore[misc]


def manual() -> str:
    """The man page."""
    group = build()
    root = typer.Context(group, info_name="diffuse")
    lines = [TOP.rstrip(), ".SH COMMANDS"]
    for title, names in group.commands.chapters().items():
        lines += [f'.SS "{title}"', *entries((name, group.commands.about(name)) for name in names)]
    lines += [".SH OPTIONS", *entries(group_parameters(group.get_params(root))["Options"])]
    for name, command in group.commands.items():
        lines += chapter(name, command, root)
    lines += [".SH ENVIRONMENT", *entries(VARIABLES.items())]
    lines += [".SH EXIT STATUS", *entries(codes())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    MANUAL.write_text(manual(), encoding="utf-8")
