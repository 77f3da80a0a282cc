"""Models of other programs, one format a file of this folder (see `Format`).

No code in a foreign file is executed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.options import changed_flags, needs_error
from diffuse_cli.config.presets import find_preset
from diffuse_cli.core import Modules
from diffuse_cli.system import (
    ModelFileError,
    Notice,
    UsageError,
    Work,
    files,
    outputs,
)
from diffuse_cli.system.hub_models import fetch_source

if TYPE_CHECKING:
    from diffuse_cli.commands.convert.importers._foreign_files import ForeignSource
    from diffuse_cli.commands.convert.importers.assembly import ForeignModel


class Format(Protocol):
    """A module of this folder.

    Attributes:
        OPTIONS: the options of `ConvertConfig` that not every format takes.
    """

    OPTIONS: Collection[str]

    def recognizes(self, source: ForeignSource) -> bool:
        """Whether the source is of this format, usable or not."""
        ...

    def read(self, source: ForeignSource, config: ConvertConfig) -> ForeignModel:
        """Return the network, process and weights of a source.

        Raises:
            ModelFileError: it is damaged, or has a layer that `UNet` lacks.
            UsageError: an option does not suit it, or is missing.
        """
        ...


FORMATS: Modules[Format] = Modules("formats", __name__, __path__, helpers=("assembly",))


OUT = "model.safetensors"
OF_EXPORTS = ("weights", "sampler", "runtime", "single_file")
"""Options of `ConvertConfig` for models that leave."""


def convert(config: ConvertConfig) -> Work[dict[str, Any]]:
    """Write another program's model as a model file, and return its path and facts.

    Raises:
        UsageError: the source is a `diffuse` model, or options do not suit it.
        ModelFileError: the source is missing, damaged, or of no known format.
        OutputError: the model file exists, or cannot be written.
    """
    changed = changed_flags(config)
    for option in OF_EXPORTS:
        if option in changed:
            raise needs_error(changed[option], "--to")
    with outputs.claim_output(
        config.out or OUT, ".safetensors", config.overwrite, read=config.source
    ) as path:
        from diffuse_cli.commands.convert.importers._foreign_files import ForeignSource
        from diffuse_cli.commands.convert.importers.assembly import assemble
        from diffuse_cli.models import model_file, model_header

        source = ForeignSource((yield from fetch_source(config.source)))
        if source.is_own:
            text = f"{source.name} is a diffuse model already"
            hint = "Use it as it is, or pass --to diffusers or --to onnx"
            raise UsageError(text, hint, code="model_mismatch", path=source.path)
        fitting = (name for name, format in FORMATS.items() if format.recognizes(source))
        name = config.format or next(fitting, None)
        if name is None:
            tuple(map(FORMATS.__getitem__, FORMATS))  # names a broken extension, which may know it
            text = f"{source.name} is no model of a known format: {', '.join(FORMATS)}"
            raise ModelFileError(text, code="model_unsupported", path=source.path)
        _check_options(config, name)
        foreign = FORMATS[name].read(source, config)
        model = assemble(foreign, source, config)
        yield from foreign.notices
        model_file.save(path, model)
        blueprint, described = model.blueprint, model_header.describe_model(model)
        diffusion, count = blueprint.diffusion, blueprint.conditions.num_classes
        schedule = diffusion.schedule or "custom betas"
        classes = f", {count:,} classes" if count else ""
        yield Notice(
            f"{name}: {model.parameters:,} parameters, {blueprint.space.size_text}, "
            f"{schedule} over {diffusion.num_timesteps:,} timesteps, target {diffusion.target}, "
            f"variance {diffusion.variance}{classes}"
        )
        return {
            "model": str(path),
            "format": name,
            "parameters": model.parameters,
            **{part: described[part] for part in ("space", "network", "diffusion")},
            "classes": count,
            "sha256": files.sha256(path),
        }


def _check_options(config: ConvertConfig, name: str) -> None:
    """Raise a `UsageError` for options of other formats, or a preset of another network."""
    if config.preset and (network := find_preset(config.preset).network) != "unet":
        text = f"--preset {config.preset} is a '{network}', and models of {name} are U-Nets"
        hint = "Leave it out, or name a published U-Net"
        raise UsageError(text, hint, code="option_unsuited")
    special = {option for format in FORMATS.values() for option in format.OPTIONS}
    changed = changed_flags(config)
    for option in sorted(special.difference(FORMATS[name].OPTIONS)):
        if option in changed:
            text = f"{changed[option]} does not suit {name}, whose files say it"
            raise UsageError(text, "Leave it out", code="option_unsuited")
