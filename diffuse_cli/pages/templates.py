"""Render templates to HTML. Strings are escaped, except output of templates and plots."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffuse_cli.media import figures
from diffuse_cli.system import __version__, files

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy: a browser loads no other page, and no script."""


def escape_unprintable(value: Any) -> Any:
    """Escape unprintable characters of a text as `files.show` does, and keep newlines."""
    if isinstance(value, Markup):
        return value
    return "\n".join(files.show(line) for line in str(value).split("\n"))


@cache
def environment() -> Environment:
    """Make Jinja's environment with the templates of this folder. Undefined names are errors."""
    env = Environment(
        loader=PackageLoader("diffuse_cli.pages"),
        autoescape=True,
        finalize=escape_unprintable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["sentence"] = lambda words: words[:1].upper() + words[1:]
    return env


def render(template: str, **names: Any) -> Markup:
    """Render a template of `templates/` with these names."""
    return Markup(environment().get_template(f"{template}.html").render(**names))


def render_page(template: str, title: str, **names: Any) -> str:
    """Render a page of a template that extends `base.html`."""
    every = {"policy": POLICY, "version": __version__, "style": Markup(css()), **names}
    return f"{render(template, title=title, **every)}\n"


def to_data_url(kind: str, content: bytes) -> str:
    """Return the content of a file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Picture:
    """Image in the page, with its width and height on the screen."""

    src: str
    alt: str
    width: int
    height: int


def picture(pixels: figures.Pixels, alt: str, side: int) -> Picture:
    """Make a picture of pixels (C, H, W), about `side` wide, enlarged by an integer factor."""
    image = figures.shrink_image(figures.to_image(pixels), side)
    zoom = max(1, round(side / max(pixels.shape[1:])))
    width, height = (n * zoom for n in image.size)
    return Picture(to_data_url("image/png", figures.encode_png(image)), alt, width, height)


def make_pictures(
    pixels: Iterable[figures.Pixels], words: Iterable[str], side: int
) -> list[Picture]:
    """Make several pictures, each with its text for screen readers."""
    return [picture(p, alt, side) for p, alt in zip(pixels, words, strict=True)]


def read_script(name: str) -> str:
    """Return a script of this folder."""
    return (resources.files("diffuse_cli.pages") / "templates" / f"{name}.js").read_text("utf-8")


def hash_script(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


# The style sheet: for paper and screens of any width, light and dark.

_COLORS = {
    "paper": ("#ffffff", "#14171c"),
    "panel": ("#f5f6f8", "#1e2229"),
    "ink": ("#1c2128", "#e4e8ee"),
    "faint": ("#57606a", "#a3adb9"),
    "rule": ("#d4d9df", "#3a414b"),
    "first": ("#0a5bb5", "#69b1ff"),
    "second": ("#b34a00", "#ff9d57"),
    "third": ("#1a7240", "#5fd08d"),
    "fourth": ("#8a3ea8", "#d69af0"),
    "fifth": ("#0b6a73", "#4fd0da"),
    "sixth": ("#b3124f", "#ff8fb3"),
    "seventh": ("#6b5d00", "#e0c84a"),
}

LIGHT, DARK = ({name: shades[i] for name, shades in _COLORS.items()} for i in range(2))
"""Every text color has a contrast of 4.5 or more on paper and panel."""


def css() -> str:
    """Return the style sheet. Print uses the light colors."""
    rules = resources.files("diffuse_cli.pages") / "templates" / "style.css"
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {_variables(DARK, 'dark')} }}"
    return f"{_variables(LIGHT, 'light')}\n{dark}\n{rules.read_text('utf-8')}"


def _variables(colors: dict[str, str], scheme: str) -> str:
    values = "; ".join(f"--{name}: {value}" for name, value in colors.items())
    return f":root {{ color-scheme: {scheme}; {values} }}"
