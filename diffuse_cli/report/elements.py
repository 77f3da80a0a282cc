"""HTML from Python values, in which every string is text unless it was made here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from diffuse_cli import files, pictures

VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})
"""Elements without an end tag."""


class Markup(str):
    """HTML that is not escaped again."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]


def text(words: str) -> Markup:
    """Words as HTML. What cannot be printed is escaped as `files.show` does, but for newlines."""
    return Markup(html.escape("\n".join(files.show(line) for line in words.split("\n"))))


def join(*children: Child) -> Markup:
    """Children one after another: markup as it is, strings escaped, None left out."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (str, int)):
            parts.append(text(str(child)))
        elif child is not None:
            parts.append(join(*child))
    return Markup("".join(parts))


def element(tag: str, *children: Child, **attributes: str | int | None) -> Markup:
    """`<tag attributes>children</tag>`.

    An attribute is left out where it is None; underscores are hyphens, and one at the end is not
    there, so that `class_` is `class`.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    end = "" if tag in VOID else f"{join(*children)}</{tag}>"
    return Markup(f"<{tag}{given}>{end}")


def picture(pixels: pictures.Pixels, alt: str, side: int, zoom: float = 1) -> Markup:
    """Pixels (C, H, W) as an image that is part of the page, scaled down to `side` where larger."""
    shown = pictures.shrunk(pictures.image(pixels), side)
    data = base64.b64encode(pictures.png(shown)).decode()
    width, height = (round(n * zoom) for n in shown.size)
    return element("img", src=f"data:image/png;base64,{data}", alt=alt, width=width, height=height)


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], **attributes: str) -> Markup:
    """A table whose first column names its rows; it scrolls sideways where it is too wide."""
    columns = [element("th", each, scope="col") for each in head]
    body = []
    for row in rows:
        name, *cells = row
        body.append(
            element("tr", element("th", name, scope="row"), [element("td", c) for c in cells])
        )
    whole = element(
        "table", element("thead", element("tr", columns)), element("tbody", body), **attributes
    )
    return element("div", whole, class_="wide", tabindex="0", role="group", aria_label="table")
