"""Templates to HTML: every string is text there, unless a template or a plot made it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffuse_cli import files, pictures


def printable(value: Any) -> Any:
    """Text whose unprintable characters are escaped as `files.show` does, but for newlines."""
    if isinstance(value, Markup):
        return value
    return "\n".join(files.show(line) for line in str(value).split("\n"))


@cache
def environment() -> Environment:
    """The templates of this folder, which know no names but those that they are given."""
    found = Environment(
        loader=PackageLoader("diffuse_cli.report"),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["sentence"] = lambda words: words[:1].upper() + words[1:]
    return found


def render(template: str, **names: Any) -> Markup:
    """A template of `templates/` with these names."""
    return Markup(environment().get_template(f"{template}.html").render(**names))


@dataclass(frozen=True)
class Picture:
    """An image that is part of the page; `width` and `height` are those on the screen."""

    src: str
    alt: str
    width: int
    height: int


def picture(pixels: pictures.Pixels, alt: str, side: int) -> Picture:
    """Pixels (C, H, W) about `side` wide: scaled down where larger, else by a whole number."""
    shown = pictures.shrunk(pictures.image(pixels), side)
    data = base64.b64encode(pictures.png(shown)).decode()
    zoom = max(1, round(side / max(pixels.shape[1:])))
    width, height = (n * zoom for n in shown.size)
    return Picture(f"data:image/png;base64,{data}", alt, width, height)


def row_of(pixels: Iterable[pictures.Pixels], words: Iterable[str], side: int) -> list[Picture]:
    """Several of them, each with its words for who cannot see it."""
    return [picture(p, alt, side) for p, alt in zip(pixels, words, strict=True)]
