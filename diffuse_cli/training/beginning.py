"""The weights that a training begins with, of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diffuse_cli import files, modelfile
from diffuse_cli.config import TrainConfig
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Notice, Work
from diffuse_cli.training.classes import but_classes, weights_for
from diffuse_cli.training.given import grown, grown_shapes
from diffuse_cli.training.table import but_columns, with_columns

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.diffusion import Blueprint


def first_weights(config: TrainConfig, blueprint: Blueprint) -> Work[Mapping[str, Tensor] | None]:
    """The weights of --init.

    Raises:
        ModelFileError: not a model file.
        UsageError: a model of another network.
    """
    if not config.init:
        return None
    model = (yield from modelfile.find(config.init)).model
    own = model.blueprint
    if bool(own.conditions.classes) != bool(blueprint.conditions.classes):
        how = "with" if own.conditions.classes else "without"
        raise UsageError(
            f"--init {files.show(config.init)} was trained {how} --classes",
            "Leave --classes and --no-classes out: they come from the model",
        )
    if own.conditions.given and not blueprint.conditions.given:
        raise UsageError(
            f"--init {files.show(config.init)} was trained with --given, on pairs",
            "Give --given, what lies beside these images",
        )
    kinds = [(b.network, b.config, b.space) for b in (own, blueprint)]
    read, written = (
        but_columns(but_classes(shapes))
        for shapes in (grown_shapes(own, blueprint), blueprint.shapes)
    )
    if kinds[0] != kinds[1] or read != written:
        raise UsageError(
            f"--init {files.show(config.init)} has another network than this configuration",
            "Leave the network's options out: they come from the model",
        )
    if own.diffusion.target != config.target:
        yield Notice(
            f"--target {config.target}, and {files.show(config.init)} predicts "
            f"{own.diffusion.target}: its output layer must be learned again",
            warning=True,
        )
    weights = yield from weights_for(blueprint.conditions.classes, model, config)
    tables = own.conditions.table, blueprint.conditions.table
    return with_columns(grown(weights, own, blueprint), *tables, blueprint.shapes)
