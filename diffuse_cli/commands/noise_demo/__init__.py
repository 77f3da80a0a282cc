"""Show how noise replaces an image under one or more schedules.

Writes a picture of the image at several timesteps, with the schedules as curves. Needs no model;
with one it also shows what the model expects the image to be, and how the model draws one.
"""

from __future__ import annotations

from typing import Any

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config import DemoConfig

CONFIG = DemoConfig


def run(config: DemoConfig, console: Console) -> None:
    """Draw the picture, print its path, and open it if asked to."""
    from diffuse_cli.commands.noise_demo import opening
    from diffuse_cli.commands.noise_demo.demonstration import demonstrate
    from diffuse_cli.core.schedules import SCHEDULES

    paths = console.follow(demonstrate(config))
    values: dict[str, Any] = {"pictures": [str(path) for path in paths]}
    if config.model is not None:
        values["model"] = config.model
    else:
        values["schedules"] = list(SCHEDULES if config.schedule is None else config.schedule)
    if config.betas is not None:
        values["betas"] = config.betas
    console.result(paths, values)
    if config.open and (why := opening.opened(opening.best(paths))):
        console.warn(why)
