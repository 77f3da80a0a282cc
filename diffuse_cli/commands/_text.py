"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Mapping

from diffuse_cli.inspection.words import brief as brief
from diffuse_cli.inspection.words import said as said
from diffuse_cli.metrics import measured


def number(values: Mapping[str, float], name: str) -> str:
    """A value with its standard error, or a dash if it was not measured."""
    return f"{measured(values, name):.4f}" if name in values else "-"


def clock(seconds: float) -> str:
    """`3:05`, or `1:03:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
