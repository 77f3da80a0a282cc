"""Fill the masked part of an image.

Works with any model. Where the mask is black, the image stays exactly the same.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.task_options import InpaintConfig

CONFIG = InpaintConfig
EXAMPLES = (
    "diffuse inpaint model.safetensors photo.png --mask hole.png",
    "diffuse inpaint model.safetensors transparent.png -n 8",
)


def run(config: InpaintConfig, console: Console) -> None:
    """Inpaint, and print the paths of the pictures."""
    from diffuse_cli.sampling.tasks.inverse_problems import inpaint

    console.follow_samples(inpaint(config), config.out)
