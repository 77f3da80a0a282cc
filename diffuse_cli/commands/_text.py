"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffuse_cli.files import show
from diffuse_cli.metrics import measured

LONGEST, MOST_VALUES = 200, 20
"""The most characters of a text from a file to print, and values of a list."""


def number(values: Mapping[str, float], name: str) -> str:
    """A value with its standard error, or a dash if it was not measured."""
    return f"{measured(values, name):.4f}" if name in values else "-"


def clock(seconds: float) -> str:
    """`3:05`, or `1:03:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def said(value: Any, number: Callable[[float], str] = "{:.4g}".format) -> str:
    """A value as text; of a long list, its length."""
    if isinstance(value, list):
        if len(value) > MOST_VALUES:
            return f"{len(value):,} values"
        return f"[{', '.join(map(partial(said, number=number), value))}]"
    return number(value) if isinstance(value, float) else str(value)


def brief(text: str) -> str:
    """The start of a text from a file, escaped."""
    return show(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")
