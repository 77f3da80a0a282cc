"""The page of `noise-demo --html`, on which each picture of a sound can be played."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from diffuse_cli.media import MEDIA, figures
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.files import show

if TYPE_CHECKING:
    import numpy.typing as npt

    from diffuse_cli.core import Space

    Array = npt.NDArray[Any]

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""What a browser may load: nothing from outside the page, and no script."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem; }
h1 { font-size: 1.2rem; }
th { font-size: .85rem; text-align: left; padding: .6rem .4rem .2rem 0; }
td { padding: 0 .4rem .6rem 0; vertical-align: top; }
img, audio { display: block; width: 12rem; }
audio { height: 2rem; margin-top: .2rem; }
"""


def check(medium: str, path: str) -> None:
    """Refuse a sample that a browser does not play.

    Raises:
        UsageError
    """
    if not hasattr(MEDIA[medium], "PLAYED"):
        raise UsageError(f"--html plays sounds, and {show(path)} is none", "Leave it out")


def page(
    title: str, rows: Mapping[str, Mapping[int, Array]], times: Sequence[int], space: Space
) -> bytes:
    """A table in one HTML file: a row for each name, a column for each timestep.

    Args:
        rows: stored samples (C, *size) by timestep.
    """
    heads = "".join(f"<th>t = {t}</th>" for t in times)
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><table>",
    ]
    for name, samples in rows.items():
        cells = "".join(f"<td>{_played(samples[t], space)}</td>" for t in times)
        lines.append(f"<tr><th>{escape(name)}</th>{heads}</tr><tr><td></td>{cells}</tr>")
    return "\n".join([*lines, "</table></body></html>\n"]).encode()


def _played(sample: Array, space: Space) -> str:
    """A sample as its picture, and a button to play it."""
    medium: Any = MEDIA[space.medium]
    picture = figures.png(medium.look(sample[None], space)[0])
    sound = _inside(medium.PLAYED, medium.encode(sample, space))
    return (
        f'<img alt="" src="{_inside("image/png", picture)}">'
        f'<audio controls preload="none" src="{sound}"></audio>'
    )


def _inside(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
