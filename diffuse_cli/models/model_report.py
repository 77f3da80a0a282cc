"""Facts and configuration of a model file, for reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffuse_cli.config.options import from_dict, to_dict
from diffuse_cli.config.train_options import TrainConfig, to_file
from diffuse_cli.core import Space, dimensions
from diffuse_cli.core.settings import to_dict as plain
from diffuse_cli.media import MEDIA

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile


def collect_facts(model_file: ModelFile) -> dict[str, Any]:
    """Return the content of a model file as plain values. Escape its texts: they are untrusted."""
    model = model_file.model
    blueprint, conditions = model.blueprint, model.blueprint.conditions
    return {
        "kind": "model",
        "path": str(model_file.path),
        "size_bytes": model_file.size_bytes,
        "sha256": model_file.sha256,
        "parameters": model.parameters,
        "raw": model.raw is not None,
        "weak": model.weak_step,
        "title": model_file.title,
        "step": model.step,
        "classes": conditions.classes,
        "data": model.data,
        "training": model.training,
        "sampling": to_dict(model.sampling) if model.sampling else None,
        "distilled": model.distilled,
        "versions": model.versions,
        "space": plain(blueprint.space),
        **({"given": plain(conditions.given)} if conditions.given else {}),
        **({"columns": plain(conditions.table)["columns"]} if conditions.table else {}),
        "network": {"name": blueprint.network, **plain(blueprint.config)},
        "diffusion": to_dict(blueprint.diffusion),
    }


def training_config(model_file: ModelFile) -> dict[str, Any]:
    """Return the training configuration of a model, as for `train --config`, without paths.

    Raises:
        ModelFileError: as `training_options`.
    """
    from diffuse_cli.models.model_file import training_options

    config = from_dict(TrainConfig, {"data": "", **training_options(model_file)})
    return to_file(config, control=False, places=False)


def describe_space(space: Space) -> str:
    """Return the kind of samples of a space: `28x28, grey`, or `5120 at 8,000 Hz, mono`."""
    medium, count = MEDIA[space.medium], space.channels
    rate = f" at {space.rate:,} Hz" if space.rate else ""
    kind = f"{count} channel{'s' * (count != 1)}"
    if space.layout not in medium.alike:
        kind = medium.kinds.get(count, kind)
    limits = ", levels {:,} to {:,}".format(*space.limits) if space.limits else ""
    return f"{dimensions(space.size)}{rate}, {kind}{limits}"
