"""Convert a model from or to another program's format.

Reads pipelines of diffusers, and checkpoints of OpenAI's improved-diffusion and guided-diffusion,
without executing code in them. With --to, or an -o that ends in .onnx or .pt2, it writes a model
for another program.
"""

from __future__ import annotations

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.exchange_options import ConvertConfig

CONFIG = ConvertConfig
EXAMPLES = (
    "diffuse convert ddpm-cifar10-32 -o model.safetensors",
    "diffuse convert model.safetensors --to diffusers -o pipeline",
)


def run(config: ConvertConfig, console: Console) -> None:
    """Convert, and print the path of the output."""
    from diffuse_cli.commands.convert.exporters import export, target_of

    if target_of(config) is None:
        _import_model(config, console)
        return
    values = console.follow(export(config))
    console.result([values["out"]], values)


def _import_model(config: ConvertConfig, console: Console) -> None:
    """Convert to a model file."""
    from diffuse_cli.commands.convert.importers import convert
    from diffuse_cli.core.settings import dimensions
    from diffuse_cli.models.model_header import describe_model
    from diffuse_cli.system.files import sha256

    made = console.follow(convert(config))
    own, said = made.model.blueprint, describe_model(made.model)
    diffusion, count = own.diffusion, own.conditions.num_classes
    size = dimensions(own.space.size)
    schedule = diffusion.schedule or "custom betas"
    classes = f", {count:,} classes" if count else ""
    console.say(
        f"{made.format}: {made.model.parameters:,} parameters, {size}, {schedule} over "
        f"{diffusion.num_timesteps:,} timesteps, target {diffusion.target}, "
        f"variance {diffusion.variance}{classes}"
    )
    values = {
        "model": str(made.path),
        "format": made.format,
        "parameters": made.model.parameters,
        **{name: said[name] for name in ("space", "network", "diffusion")},
        "classes": count,
        "sha256": sha256(made.path),
    }
    console.result([made.path], values)
