"""Templates to HTML. Every string is escaped, except what a template or a plot made."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffuse_cli.media import figures
from diffuse_cli.system import files


def printable(value: Any) -> Any:
    """Text with unprintable characters escaped as in `files.show`, newlines kept."""
    if isinstance(value, Markup):
        return value
    return "\n".join(files.show(line) for line in str(value).split("\n"))


@cache
def environment() -> Environment:
    """Jinja with the templates of this folder; an undefined name is an error."""
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
    """An image in the page; `width` and `height` are on the screen."""

    src: str
    alt: str
    width: int
    height: int


def picture(pixels: figures.Pixels, alt: str, side: int) -> Picture:
    """Pixels (C, H, W) about `side` wide, scaled down, or up by a whole number."""
    shown = figures.shrunk(figures.image(pixels), side)
    data = base64.b64encode(figures.png(shown)).decode()
    zoom = max(1, round(side / max(pixels.shape[1:])))
    width, height = (n * zoom for n in shown.size)
    return Picture(f"data:image/png;base64,{data}", alt, width, height)


def row_of(pixels: Iterable[figures.Pixels], words: Iterable[str], side: int) -> list[Picture]:
    """Several pictures, each with its text for screen readers."""
    return [picture(p, alt, side) for p, alt in zip(pixels, words, strict=True)]
