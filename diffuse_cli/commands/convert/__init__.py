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

    if target_of(config) is None:
        _import_model(config, console)
        return
    values = console.follow(export(config))
    console.result([values["out"]], values)


def _import_model(config: ConvertConfig, console: Console) -> None:
    """Convert to a model file."""
    from diffuse_cli.commands.convert.importers import convert
    from diffuse_cli.core import dimensions
    from diffuse_cli.models.model_header import describe_model
    from diffuse_cli.system.files import sha256

    converted = console.follow(convert(config))
    blueprint, description = converted.model.blueprint, describe_model(converted.model)
    diffusion, count = blueprint.diffusion, blueprint.conditions.num_classes
    size = dimensions(blueprint.space.size)
    schedule = diffusion.schedule or "custom betas"
    classes = f", {count:,} classes" if count else ""
    console.say(
        f"{converted.format}: {converted.model.parameters:,} parameters, {size}, {schedule} over "
        f"{diffusion.num_timesteps:,} timesteps, target {diffusion.target}, "
        f"variance {diffusion.variance}{classes}"
    )
    values = {
        "model": str(converted.path),
        "format": converted.format,
        "parameters": converted.model.parameters,
        **{name: description[name] for name in ("space", "network", "diffusion")},
        "classes": count,
        "sha256": sha256(converted.path),
    }
    console.result([converted.path], values)
