"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffuse_cli.metrics import measured


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def number(values: Mapping[str, float], name: str) -> str:
    """A value with its standard error, or a dash if it was not measured."""
    return f"{measured(values, name):.4f}" if name in values else "-"


def clock(seconds: float) -> str:
    """`3:05`, or `1:03:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
