"""Draw what an image was before it was blurred, made grey, made small or masked.

Degraded again, what is drawn gives the image again, unless it has noise.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.task_options import RestoreConfig

CONFIG = RestoreConfig


def run(config: RestoreConfig, console: Console) -> None:
    """Restore, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.inverse_problems import restore

    made = console.follow(restore(config))
    if made is not None:
        console.result(made.paths, {"out": config.out, **made.values})
