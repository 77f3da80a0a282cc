"""Launchers whose processes are forked: what they start stands in for `diffuse`, and says its
arguments and its environment."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from process_server import Forked

STAND_IN = """
import json, os, sys, time
from pathlib import Path
mine = Path(__file__).parents[1] / os.environ["RANK"]
mine.with_suffix(".tmp").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
mine.with_suffix(".tmp").rename(mine.with_suffix(".asked"))
told = mine.with_suffix(".code")
while not (told.exists() and told.read_text()):
    time.sleep(0.01)
sys.exit(int(told.read_text()))
"""
"""What a launcher runs as `-m diffuse_cli`: it says what it was given, and ends as it is told."""


class StandIns:
    """A folder for `PYTHONPATH` where they are, and where they are asked and told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "diffuse_cli"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN)

    def asked(self, rank: int, launcher: Forked) -> tuple[list[str], dict[str, Any]]:
        """The arguments and the environment of a process, once its launcher has started it."""
        while not (said := self.folder / f"{rank}.asked").exists():
            assert launcher.poll() is None, launcher.communicate()
            time.sleep(0.01)
        arguments, env = json.loads(said.read_text())
        del env["PYTHONPATH"]
        return arguments, env

    def tell(self, rank: int, code: int | None) -> None:
        """End one with this exit code."""
        (self.folder / f"{rank}.code").write_text(str(code))
