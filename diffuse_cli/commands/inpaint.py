"""Draw the masked part of an image anew, with a model that was trained on whole images.

What the mask leaves black is kept to the last level.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.task_options import InpaintConfig

CONFIG = InpaintConfig


def run(config: InpaintConfig, console: Console) -> None:
    """Inpaint, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.inverse_problems import inpaint

    made = console.follow(inpaint(config))
    if made is not None:
        console.result(made.paths, {"out": config.out, **made.values})
