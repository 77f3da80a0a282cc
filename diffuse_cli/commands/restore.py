"""Restore a blurred, grey, small or masked image.

The same degradation of the result gives the input again, unless the input has noise.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.task_options import RestoreConfig

CONFIG = RestoreConfig
EXAMPLES = (
    "diffuse restore model.safetensors blurred.png --degradation blur:2",
    "diffuse restore model.safetensors photo.png --degradation grey --degrade",
)


def run(config: RestoreConfig, console: Console) -> None:
    """Restore, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.inverse_problems import restore

    console.follow_samples(restore(config), config.out)
