"""Draw variations of an image: noise is added to it, and taken away by the model."""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.task_options import VaryConfig

CONFIG = VaryConfig


def run(config: VaryConfig, console: Console) -> None:
    """Vary, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.variations import vary

    made = console.follow(vary(config))
    if made is not None:
        console.result(made.paths, {"out": config.out, **made.values})
