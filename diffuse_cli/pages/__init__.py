"""Pages as single HTML files: templates, style, plots and curves, and the viewer of --open."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def has_display() -> bool:
    """Whether a viewer can be seen. Without a display a browser of text would take the terminal."""
    named = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    return not sys.platform.startswith("linux") or any(map(os.environ.get, named))


def open_file(path: Path) -> bool:
    """Open a file, and return whether there is a viewer. May last until the viewer ends."""
    import webbrowser

    try:
        return webbrowser.open(path.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return False
