"""Describe a folder or zip of images, a model file, or a run.

For images: how many are usable and why the others are not, sizes, classes, duplicates, pixel
statistics. For a model file: its network, process, classes and training. For a run directory, which
may be under way: how far it is, its losses, and its newest model.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.shared_options import InfoConfig

CONFIG = InfoConfig


def run(config: InfoConfig, console: Console) -> None:
    """Inspect, and print what was found."""
    from diffuse_cli.commands.info.inspection import inspect

    found = console.follow(inspect(config))
    console.show(found.to_dict(), found.lines())
