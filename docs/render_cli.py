"""Render the help of every command into docs/cli.md, which a test compares with the program.

python docs/render_cli.py
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from diffuse_cli.app import main
from diffuse_cli.commands import COMMANDS

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

Made by `python docs/render_cli.py` from the program's own help; a test keeps the two equal.
A flag wins over a file given with `--config`, and the file over the defaults.

Exit codes: 0 ok · 1 a bug, with its traceback · 2 usage or configuration · 3 data unusable or
missing · 4 model file rejected or missing · 5 output exists, is not writable, or other I/O ·
6 training diverged · 75 another run holds the output · 76 one of several processes is gone ·
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
    sections += [(f"diffuse {name}", help_of(name)) for name in COMMANDS]
    return HEAD + "".join(f"\n## {title}\n\n```\n{text}\n```\n" for title, text in sections)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
