"""Show the forward process of one image, with its noise schedules as curves.

No model is needed.
"""

from __future__ import annotations

from diffuse_cli.config import DemoConfig
from diffuse_cli.console import Console

CONFIG = DemoConfig


def run(config: DemoConfig, console: Console) -> None:
    """Draw the picture, and print its path."""
    from diffuse_cli.demo import demonstrate

    paths = console.follow(demonstrate(config))
    values = {"pictures": [str(path) for path in paths], "schedules": list(config.schedule)}
    console.result(paths, values)
