"""Generate variations of an image.

Adds noise to the image, which the model then removes.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.task_options import VaryConfig

CONFIG = VaryConfig
EXAMPLES = (
    "diffuse vary model.safetensors photo.png",
    "diffuse vary model.safetensors photo.png --strength 0.3 -n 8",
)


def run(config: VaryConfig, console: Console) -> None:
    """Vary, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.variations import vary

    console.follow_samples(vary(config), config.out)
