"""The subcommands: one file each, or a package with its own modules; `noise_demo` is `noise-demo`.

A module has `CONFIG`, the dataclass of its options, `run(config, console)`, and a docstring, which
is the help. It can have `EXAMPLES`, command lines for the help, and `configure(typed, filed)`, if
more than flags and a file decide its configuration.
"""

from __future__ import annotations

from typing import Any, Protocol

from diffuse_cli.commands._cli import Console
from diffuse_cli.core import Modules


class Command(Protocol):
    """A module of this folder."""

    CONFIG: type[Any]

    def run(self, config: Any, console: Console) -> None:
        """Do the work and print what it yields."""
        ...


COMMANDS: Modules[Command] = Modules("commands", __name__, __path__)
