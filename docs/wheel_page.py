"""README.md as the page of the wheel, where links to files of the repository lead nowhere.

They become whole: they begin with the address `Source` of `[project.urls]` in pyproject.toml.
Without one a link becomes its text, and pictures are left out. hatchling calls this.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
IMAGE = re.compile(r'<img src="(?!\w+:)([^"]+)"([^>]*)>')


def whole(text: str, address: str) -> str:
    """Markdown whose relative links begin with an address; without them if it is empty."""

    def link(found: re.Match[str]) -> str:
        mark, words, path = found.groups()
        if not address:
            return "" if mark else words
        return f"{mark}[{words}]({address}/{'raw' if mark else 'blob'}/HEAD/{path})"

    def image(found: re.Match[str]) -> str:
        path, rest = found.groups()
        return f'<img src="{address}/raw/HEAD/{path}"{rest}>' if address else ""

    parts = CODE.split(text)
    parts[::2] = [IMAGE.sub(image, LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)


class Page(MetadataHookInterface):
    """Sets the long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called with the table `[project]`."""
        address = metadata.get("urls", {}).get("Source", "").rstrip("/")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": whole(text, address)}
