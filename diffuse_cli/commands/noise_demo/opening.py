"""Opening a file in the viewer of the system: `noise-demo --open`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from diffuse_cli.system.files import show

KINDS = (".html", ".gif", ".png")
"""The file that shows most first."""


def best(paths: Sequence[Path]) -> Path:
    """Of several files the one to look at."""
    return min(paths, key=lambda path: KINDS.index(path.suffix))


def opened(path: Path) -> str:
    """Open a file; returns why that was not possible, or nothing.

    A viewer that is not there is no error: the file is written, and its path was printed.
    """
    import webbrowser

    # Without a display webbrowser would start a browser of text, which takes the terminal.
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    ):
        return f"--open: there is no display to show {show(path)} on"
    try:
        if webbrowser.open(path.resolve().as_uri()):
            return ""
    except (webbrowser.Error, OSError):
        pass
    return f"--open: the system has no viewer for {show(path)}"
