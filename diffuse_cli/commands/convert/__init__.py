"""Convert a model from or to another program's format.

Reads pipelines of diffusers, and checkpoints of OpenAI's improved-diffusion and guided-diffusion,
without executing code in them. With --to, or an -o that ends in .onnx or .pt2, it writes a model
for another program.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.exchange_options import ConvertConfig

CONFIG = ConvertConfig
EXAMPLES = (
    "diffuse convert ddpm-cifar10-32 -o model.safetensors",
    "diffuse convert model.safetensors --to diffusers -o pipeline",
)


def run(config: ConvertConfig, console: Console) -> None:
    """Convert, and print the path of the output."""
    from diffuse_cli.commands.convert.exporters import export, target_of
    from diffuse_cli.commands.convert.importers import convert

    if target_of(config) is None:
        values = console.follow(convert(config))
        console.result([values["model"]], values)
    else:
        values = console.follow(export(config))
        console.result([values["out"]], values)
