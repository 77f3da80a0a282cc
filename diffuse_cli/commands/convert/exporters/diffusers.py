"""A folder that pipelines of diffusers load: `UNet2DModel`, a scheduler and a model card.

Tensors have their names already. What diffusers has no word for is refused by the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.convert.diffusers_schedulers import SCHEDULERS, scheduler_fields
from diffuse_cli.commands.convert.diffusers_unet import find_unsupported, unet_fields
from diffuse_cli.commands.convert.exporters import export_error
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.parameterization import LEARNED
from diffuse_cli.system import Notice, UsageError, Work, file_types, files, lookup

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile, StoredModel

OUT = "diffusers"
PARTS = ("README.md", "model_index.json", "scheduler", "unet")
MARK = ("README.md", "`diffuse convert --to diffusers`")
OPTIONS = ("sampler",)

WEIGHTS = file_types.WEIGHTS[0]

DEFAULT = "ddpm"
"""The sampler of a model that recommends none, or one that no pipeline runs."""

LOOP = "no pipeline of diffusers {}: README.md there has a loop that does"


def check(config: ConvertConfig) -> None:
    """Refuse a sampler that has no scheduler there."""
    if config.sampler is None:
        return
    lookup(SAMPLERS, config.sampler, "--sampler")
    if config.sampler not in SCHEDULERS:
        text = f"--sampler {config.sampler} has no scheduler in diffusers that does the same"
        raise UsageError(text, f"Choose one of {', '.join(SCHEDULERS)}")


def write(path: Path, file: ModelFile, config: ConvertConfig) -> Work[Mapping[str, Any]]:
    """Write the folder, and report which scheduler it has where that is not what one would
    expect."""
    from diffuse_cli.commands.convert.exporters import _pipeline_card

    model, weights = file.model, config.weights or "ema"
    for lack in find_unsupported(model.blueprint):
        raise export_error(file, "diffusers", *lack)
    if model.distilled is not None:
        raise export_error(file, "diffusers", "distilled", "a consistency function",
                      "Convert the model that it was made from")  # fmt: skip
    tensors = model.tensors(weights)
    name, notices = _sampler(model, config)
    yield from notices
    if model.blueprint.conditions.classes:
        yield Notice(LOOP.format("tells a U-Net its class"))
    scheduler = SCHEDULERS[name]
    unet = unet_fields(model.blueprint, model.training.get("label_dropout"))
    process = scheduler_fields(scheduler, model.blueprint.diffusion)
    index = {
        "_class_name": scheduler.pipeline or "DDPMPipeline",
        "scheduler": ["diffusers", scheduler.name],
        "unet": ["diffusers", "UNet2DModel"],
    }

    def fill(folder: Path) -> None:
        from diffuse_cli.models import tensor_file

        files.write_json(folder / "model_index.json", index)
        files.write_json(folder / "unet" / "config.json", unet)
        tensor_file.write(folder / "unet" / WEIGHTS, tensors, {"format": "pt"})
        files.write_json(folder / "scheduler" / "scheduler_config.json", process)
        files.write_text(folder / "README.md", _pipeline_card.card(path.name, file, weights, name))

    files.write_folder(path, fill)
    return {
        "pipeline": index["_class_name"],
        "scheduler": scheduler.name,
        "unet": unet,
        "sha256": files.sha256(path / "unet" / WEIGHTS),
    }


def _sampler(model: StoredModel, config: ConvertConfig) -> tuple[str, list[Notice]]:
    """Return the sampler whose scheduler is written, and what to say about it."""
    learned = model.blueprint.diffusion.variance in LEARNED
    if config.sampler is not None:
        chosen = SCHEDULERS[config.sampler]
        if learned and not chosen.variance:
            message = f"--sampler {config.sampler}: {chosen.name} takes no learned variance"
            raise UsageError(message, f"Give --sampler {DEFAULT}, or leave it out")
        alone = [Notice(LOOP.format(f"runs {chosen.name}"))] if chosen.pipeline is None else []
        return config.sampler, alone
    sampler = model.sampling.sampler if model.sampling else DEFAULT
    scheduler = SCHEDULERS.get(sampler)
    if scheduler and scheduler.pipeline and (scheduler.variance or not learned):
        return sampler, []
    name = SCHEDULERS[DEFAULT].name
    text = f"no pipeline of diffusers runs {sampler}, which is recommended: {name}"
    return DEFAULT, [Notice(text)]
