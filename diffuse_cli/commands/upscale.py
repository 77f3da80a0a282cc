"""Enlarge a small image with a model of larger images.

The average of each block of the result is the pixel of the small image.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.task_options import UpscaleConfig

CONFIG = UpscaleConfig
EXAMPLES = (
    "diffuse upscale model.safetensors small.png",
    "diffuse upscale model.safetensors small.png --factor 2 -n 1",
)


def run(config: UpscaleConfig, console: Console) -> None:
    """Upscale, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.inverse_problems import upscale

    console.follow_samples(upscale(config), config.out)
