"""Describe a dataset, a model file or a run.

For a dataset: usable and skipped files, sizes, classes, duplicates and pixel statistics. For a
model file: its network, process, conditioning and training. For a run directory, also during
training: its progress, losses and newest model.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.shared_options import InfoConfig

CONFIG = InfoConfig
EXAMPLES = ("diffuse info photos -o sheet.png", "diffuse info model.safetensors")


def run(config: InfoConfig, console: Console) -> None:
    """Inspect, and print what was found."""
    from diffuse_cli.commands.info.inspection import inspect

    console.show(*console.follow(inspect(config)))
