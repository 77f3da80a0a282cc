"""Show how noise replaces an image under one or more schedules.

Writes the image at several timesteps, with the schedules as curves. Needs no model. With a model,
it also shows how the model denoises the image, and how it samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.noise_demo_options import DemoConfig
from diffuse_cli.pages import has_display, open_file
from diffuse_cli.system import show

CONFIG = DemoConfig
EXAMPLES = (
    "diffuse noise-demo photo.png --open",
    "diffuse noise-demo photo.png --schedule linear --schedule cosine --gif",
)


def run(config: DemoConfig, console: Console) -> None:
    """Draw the picture, print its path, and open it if asked to."""
    from diffuse_cli.commands.noise_demo.demonstration import demonstrate
    from diffuse_cli.core import SCHEDULES

    paths = console.follow(demonstrate(config))
    values: dict[str, Any] = {"pictures": [str(path) for path in paths]}
    if config.model is not None:
        values["model"] = config.model
    else:
        values["schedules"] = list(SCHEDULES if config.schedule is None else config.schedule)
    if config.betas is not None:
        values["betas"] = config.betas
    console.result(paths, values)
    if config.open and (why := opened(paths[-1])):
        console.warn(why)


# -- opening --------------------------------------------------------------------------------------

# Opening a file in the viewer of the system: `noise-demo --open`.


def opened(path: Path) -> str:
    """Open a file. Returns why that was not possible, or nothing.

    A viewer that is not there is no error: the file is written, and its path was printed.
    """
    if not has_display():
        return f"--open: there is no display to show {show(path)} on"
    return "" if open_file(path) else f"--open: the system has no viewer for {show(path)}"
