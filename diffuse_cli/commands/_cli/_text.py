"""Numbers and tables as text."""

from __future__ import annotations

from diffuse_cli.commands._cli.console import brief as brief
from diffuse_cli.commands._cli.console import said as said


def clock(seconds: float) -> str:
    """`3:05`, or `1:03:05` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
