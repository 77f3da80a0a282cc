"""Generate images between two images.

Encodes both images as noise, and generates images from the noise in between. Reports how close
both images come back from their noise.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.task_options import InterpolateConfig

CONFIG = InterpolateConfig
EXAMPLES = (
    "diffuse interpolate model.safetensors a.png b.png",
    "diffuse interpolate model.safetensors a.png b.png -n 16 --steps 50",
)


def run(config: InterpolateConfig, console: Console) -> None:
    """Interpolate, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.variations import interpolate

    files_and_psnr = console.follow(interpolate(config))
    if files_and_psnr is not None:
        files, psnr = files_and_psnr
        console.result(files.paths, {"out": config.out, **files.values, "psnr": psnr})
