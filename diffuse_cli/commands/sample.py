"""Generate images from a trained model.

Writes the images, a grid of all images, and a manifest of the settings that reproduce them. If you
stop the command, run it again to generate the rest.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.sample_options import SampleConfig

CONFIG = SampleConfig
EXAMPLES = (
    "diffuse sample model.safetensors -n 64",
    "diffuse sample model.safetensors --class cat --guidance 3 -o cats",
)


def run(config: SampleConfig, console: Console) -> None:
    """Sample, and print the paths of the pictures."""
    from diffuse_cli.sampling.cascade import generate

    files = console.follow(generate(config))
    if files is not None:
        gif = str(files.gif) if files.gif else None
        order = dict.fromkeys(("out", "images", "grid"))
        values = {**order, "gif": gif, **files.values, "out": config.out}
        console.result(files.paths, values)
        if files.grid:
            console.say(f"See them all in one image: {files.grid}")
