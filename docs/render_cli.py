"""Render the help of every command into docs/cli.md and diffuse.1, which a test compares with it.

python docs/render_cli.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from diffuse_cli import __version__
from diffuse_cli.app import build, main
from diffuse_cli.commands._cli.help import group_parameters

PAGE, MANUAL = Path(__file__).with_name("cli.md"), Path(__file__).with_name("diffuse.1")
HEAD = """# The command line

Made by `python docs/render_cli.py` from the program's own help; a test keeps the two equal.
A flag wins over a file given with `--config`, and the file over the defaults. stdout has only the
result: one path per line, or one JSON object with `--json`. On a terminal, one line replaces
more than four paths. It has the number of files and their folder.

Exit codes: 0 ok · 1 a bug, with its traceback · 2 usage or configuration · 3 data unusable or
missing · 4 model file rejected or missing · 5 output exists, is not writable, or other I/O ·
6 divergence · 75 another run holds the output · 76 one of several processes is gone ·
130 interrupted · 143 terminated.
"""


def help_of(*command: str) -> str:
    """What `diffuse COMMAND --help` prints, at 80 columns."""
    os.environ["COLUMNS"] = "80"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([*command, "--help"])
    return text.getvalue().strip()


def render() -> str:
    """The whole page."""
    sections = [("diffuse", help_of())]
    sections += [(f"diffuse {name}", help_of(name)) for name in build().commands]
    return HEAD + "".join(f"\n## {title}\n\n```\n{text}\n```\n" for title, text in sections)


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
