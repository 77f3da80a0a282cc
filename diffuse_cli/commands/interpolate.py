"""Draw images between two, from the noise that the model makes each of.

Says how near the two come back from their noise.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.task_options import InterpolateConfig

CONFIG = InterpolateConfig


def run(config: InterpolateConfig, console: Console) -> None:
    """Interpolate, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.variations import interpolate

    found = console.follow(interpolate(config))
    if found is not None:
        made, psnr = found
        console.result(made.paths, {"out": config.out, **made.values, "psnr": psnr})
