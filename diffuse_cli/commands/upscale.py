"""Draw an image several times larger, up to the size of a model's images.

Averaged over blocks, what is drawn gives the small image again.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.task_options import UpscaleConfig

CONFIG = UpscaleConfig


def run(config: UpscaleConfig, console: Console) -> None:
    """Upscale, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.inverse_problems import upscale

    made = console.follow(upscale(config))
    if made is not None:
        console.result(made.paths, {"out": config.out, **made.values})
