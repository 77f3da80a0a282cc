"""Draw images from a model file.

Writes the images, a grid of them, and a manifest with the settings that reproduce them.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.sample_options import SampleConfig

CONFIG = SampleConfig


def run(config: SampleConfig, console: Console) -> None:
    """Sample, and print the paths of the pictures."""
    from diffuse_cli.sampling.job import generate

    made = console.follow(generate(config))
    if made is not None:
        gif = str(made.gif) if made.gif else None
        order = dict.fromkeys(("out", "images", "grid"))
        values = {**order, "gif": gif, **made.values, "out": config.out}
        console.result(made.paths, values)
        if made.grid:
            console.say(f"See them all in one image: {made.grid}")
