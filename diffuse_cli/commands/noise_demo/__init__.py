"""Show how noise replaces an image under one or more schedules.

Writes the image at several timesteps, with the schedules as curves. Needs no model. With a model,
it also shows how the model denoises the image, and how it samples.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli import pages
from diffuse_cli.commands._cli import Console
from diffuse_cli.config.task_options import DemoConfig
from diffuse_cli.core import SCHEDULES
from diffuse_cli.system import Progress, Work, files, outputs

if TYPE_CHECKING:
    from diffuse_cli.commands.noise_demo.forward_process import Scene
    from diffuse_cli.commands.noise_demo.reverse_process import Trajectories

CONFIG = DemoConfig
EXAMPLES = (
    "diffuse noise-demo photo.png --open",
    "diffuse noise-demo photo.png --schedule linear --schedule cosine --gif",
)


def run(config: DemoConfig, console: Console) -> None:
    """Draw the picture, print its path, and open it if asked to."""
    paths = console.follow(demonstrate(config))
    values: dict[str, Any] = {"pictures": [str(path) for path in paths]}
    if config.model is not None:
        values["model"] = config.model
    else:
        schedules = dict(SCHEDULES.items()) if config.schedule is None else config.schedule
        values["schedules"] = list(schedules)
    if config.betas is not None:
        values["betas"] = config.betas
    console.result(paths, values)
    if config.open and (why := open_picture(paths[-1])):
        console.warn(why)


def demonstrate(config: DemoConfig) -> Work[tuple[Path, ...]]:
    """Draw the picture, and what else is asked for. Returns the paths written.

    Raises:
        UsageError: an unknown schedule, betas that are not a process, a size too large to draw, or
            an output that is not .png.
        OutputError: an output exists or cannot be written.
        DataError: the image is missing or cannot be read.
    """
    from diffuse_cli.commands.noise_demo import forward_process
    from diffuse_cli.media import figures

    out = Path(config.out or f"{Path(config.image).stem}.noise-demo.png")
    outputs.check_suffix(out, ".png")
    forward_process.check_sample_options(config)
    named = {".png": out} | ({".gif": out.with_suffix(".gif")} if config.gif else {})
    with contextlib.ExitStack() as stack:
        claims = [
            outputs.claim_output(path, end, config.overwrite, read=config.image)
            for end, path in named.items()
        ]
        paths = tuple(map(stack.enter_context, claims))
        scene: Scene | Trajectories
        if config.model is None:
            scene = yield from forward_process.prepare(config)
        else:
            from diffuse_cli.commands.noise_demo import reverse_process

            scene = yield from reverse_process.prepare(config)
        yield Progress("drawing", 0, 1)
        contents = [figures.encode_png(scene.draw(config.steps))]
        yield Progress("drawing", 1, 1)
        if config.gif:
            contents.append((yield from scene.animate()))
        for path, content in zip(paths, contents, strict=True):
            files.write_bytes(path, content)
    return paths


def open_picture(path: Path) -> str:
    """Open a file in the viewer of the system. Returns why that was not possible, or nothing.

    A viewer that is not there is no error: the file is written, and its path was printed.
    """
    if not pages.has_display():
        return f"--open: there is no display to show {files.show(path)} on"
    return (
        "" if pages.open_file(path) else f"--open: the system has no viewer for {files.show(path)}"
    )
