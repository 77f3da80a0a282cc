"""Write another program's model as a model file.

Models of diffusers, and checkpoints of OpenAI's improved- and guided-diffusion. Nothing in a file
is executed.
"""

from __future__ import annotations

from diffuse_cli.config import ConvertConfig
from diffuse_cli.console import Console

CONFIG = ConvertConfig


def run(config: ConvertConfig, console: Console) -> None:
    """Convert, and print the path of the model file."""
    from diffuse_cli.files import sha256
    from diffuse_cli.interop import convert
    from diffuse_cli.options import to_dict

    made = console.follow(convert(config))
    unet, diffusion = made.model.unet, made.model.diffusion
    parameters = sum(tensor.numel() for tensor in made.model.ema.values())
    height, width = unet.size
    schedule = diffusion.schedule or "its own betas"
    classes = f", {unet.num_classes:,} classes" if unet.num_classes else ""
    console.say(
        f"{made.format}: {parameters:,} parameters, {height}x{width}, {schedule} over "
        f"{diffusion.num_timesteps:,} timesteps, target {diffusion.target}, "
        f"variance {diffusion.variance}{classes}"
    )
    values = {
        "model": str(made.path),
        "format": made.format,
        "parameters": parameters,
        "unet": to_dict(unet),
        "diffusion": to_dict(diffusion),
        "classes": len(made.model.classes),
        "sha256": sha256(made.path),
    }
    console.result([made.path], values)
