"""The subcommands, one file each; `noise_demo.py` is `noise-demo`.

A command's module has `CONFIG`, the dataclass whose fields are its options, `run(config, console)`
and a docstring that is its help; where its configuration comes from more than flags and a file,
also `configure(typed, filed)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from diffuse_cli.console import Console
from diffuse_cli.core.registry import Modules


class Command(Protocol):
    """What a file of this folder holds."""

    CONFIG: type[Any]

    def run(self, config: Any, console: Console) -> None:
        """Do the command and render what it yields."""
        ...


COMMANDS: Mapping[str, Command] = Modules("commands", __name__, __path__)
