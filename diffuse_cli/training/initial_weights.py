"""Initial weights of a run with --init, and a report of the parts that change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.conditions import PAIRS, MetadataTable
from diffuse_cli.core.losses import TAUGHT
from diffuse_cli.core.networks import NETWORKS, Ends, count_parameters
from diffuse_cli.core.settings import Settings, dimensions, to_dict
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Table, Work
from diffuse_cli.training.training_conditions import list_names
from diffuse_cli.training.weight_transfer import (
    COLOR,
    GREY,
    ends_of,
    has_numbered_classes,
    learns_variance,
    transfer_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.models.model_file import StoredModel
    from diffuse_cli.training.plan import Plan

NOISE = ("schedule", "betas", "log_snr_shift", "zero_terminal_snr", "rescale_timesteps")
"""Settings that decide how noisy samples are at each timestep that a network sees."""

STATISTICS = {"low", "high", "missing", "dropout", "noise"}
"""Fields of conditions that describe the training and do not change the encoding."""

CONDITIONS = {"given": "conditioning images", "classes": "classes", "table": "metadata columns"}
"""Readable names of the fields of `Conditions`."""


@dataclass(frozen=True)
class ModelChange:
    """Part of a model that changes when another run starts from it.

    Attributes:
        parameters: the number of new parameters, or of those left out. None for a part without.
        gone: whether the parameters are left out.
    """

    name: str
    text: str
    parameters: int | None = None
    gone: bool = False


def load_initial_weights(plan: Plan) -> Work[Mapping[str, Tensor] | None]:
    """Load the weights of --init, unless the teacher has them, and report the parts that change.

    Raises:
        ModelFileError: not a model file.
        UsageError: the network or the kind of samples differs, or a student's conditions differ
            from its teacher's.
    """
    config, blueprint = plan.config, plan.blueprint
    if not config.init:
        return None
    model = plan.teacher.model if plan.teacher else (yield from model_file.find(config.init)).model
    source = files.show(config.init)
    _check_network(source, model.blueprint, blueprint)
    if config.loss in TAUGHT:
        _check_student(source, model, blueprint)
    yield from (Notice(text, warning=True) for text in _warnings(source, model, blueprint))
    yield from _report_changes(source, list(find_changes(model, blueprint)), blueprint)
    return transfer_weights(model, blueprint, config.seed)


def _check_network(source: str, own: Blueprint, wanted: Blueprint) -> None:
    """Refuse a blueprint that cannot use the weights.

    Raises:
        UsageError: the samples or the network are of another kind.
    """
    kinds = [(b.space.medium, b.space.levels, b.space.mean, b.space.std) for b in (own, wanted)]
    if kinds[0] != kinds[1] or own.space.dims != wanted.space.dims:
        text = f"--init {source} was trained on another kind of data"
        raise UsageError(text, "Remove it, or use data like the model's")
    if own.wiener != wanted.wiener:
        trained = "with" if own.wiener else "without"
        text = f"--init {source} was trained {trained} --wiener"
        raise UsageError(text, "Leave out --wiener and --no-wiener, which come from the model")
    resized = getattr(NETWORKS.get(own.network), "resized", lambda config, before, after: config)
    networks = [
        (own.network, resized(own.config, own.space.size, wanted.space.size), _shapes(own)),
        (wanted.network, wanted.config, _shapes(wanted)),
    ]
    if networks[0] != networks[1]:
        text = f"--init {source} has another network than this configuration"
        raise UsageError(text, "Remove the network's options: they come from the model")


def _check_student(source: str, teacher: StoredModel, wanted: Blueprint) -> None:
    """Refuse to distil into a model with another process, conditions, levels or shapes.

    Raises:
        UsageError: one of them differs from the teacher's.
    """
    own = teacher.blueprint
    process = (*NOISE, "num_timesteps")
    if any(getattr(own.diffusion, n) != getattr(wanted.diffusion, n) for n in process):
        text = f"{source} has another process, which a distilled model must keep"
        raise UsageError(text, "Remove --schedule, --betas and other options of the process")
    if own.space.level_range != wanted.space.level_range:
        text = f"{source} was trained on {_levels(own)}, not {_levels(wanted)}"
        raise UsageError(text, "Use the data that it was trained on")
    for name, words in CONDITIONS.items():
        theirs, ours = (getattr(b.conditions, name) for b in (own, wanted))
        same = _describe_encoding(theirs) == _describe_encoding(ours)
        if not same and not (
            name == "classes" and has_numbered_classes(teacher, wanted.conditions.classes)
        ):
            text = f"{source} was trained with other {words}, which a distilled model must keep"
            raise UsageError(text, "Use the data that it was trained on")
    if dict(own.shapes) != dict(wanted.shapes):
        text = f"{source} has another network, which a distilled model must keep"
        raise UsageError(text, "Remove --channels, --size and --variance: they come from the model")


def _describe_encoding(value: object) -> object:
    """Return the part of a condition that decides its encoding, without statistics of samples."""
    if isinstance(value, MetadataTable):
        return tuple(map(_describe_encoding, value.columns))
    if isinstance(value, Settings):
        return {name: value for name, value in to_dict(value).items() if name not in STATISTICS}
    return value


def _levels(blueprint: Blueprint) -> str:
    """Return the levels that a model sees at -1 and 1."""
    assert blueprint.space.level_range is not None
    return "levels {:,} to {:,}".format(*blueprint.space.level_range)


def _shapes(blueprint: Blueprint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that do not depend on samples and conditions."""
    ends, shapes = ends_of(blueprint), dict(blueprint.shapes)
    if ends is None:
        return shapes
    changed = (ends.input, ends.output, ends.output_bias, ends.classes)
    return {
        name: shape
        for name, shape in shapes.items()
        if name not in changed and not name.startswith(f"{ends.columns}.")
    }


def _warnings(source: str, model: StoredModel, wanted: Blueprint) -> Iterator[str]:
    own, names = model.blueprint, wanted.conditions.classes
    if own.diffusion.target != wanted.diffusion.target:
        yield (
            f"--target {wanted.diffusion.target} differs from {source}, which predicts "
            f"{own.diffusion.target}: its output layer is learned again"
        )
    given = own.conditions.given
    if given and given.what == PAIRS and not wanted.conditions.given:
        yield f"{source} was trained with --given on pairs, and this run has no --given"
    if has_numbered_classes(model, names):
        yield (
            f"the classes of {source} have no names, so they follow the order of the folders: "
            f"{list_names(names)}"
        )


def _report_changes(source: str, found: list[ModelChange], wanted: Blueprint) -> Work[None]:
    """Report that all parameters are reused, or a table of the parts that change."""
    total = count_parameters(wanted.build_on_meta())
    if not found:
        yield Notice(f"starting from {source}: all {total:,} parameters are reused")
        return
    new = sum(part.parameters or 0 for part in found if not part.gone)
    rest = ModelChange("the rest", "unchanged", total - new)
    rows = [
        (part.name, "" if part.parameters is None else f"{part.parameters:,}", part.text)
        for part in (*found, rest)
    ]
    yield Notice(f"starting from {source}:")
    yield Table((("part", "parameters", "change"), *rows))


# -- parts that change ----------------------------------------------------------------------------


def find_changes(model: StoredModel, wanted: Blueprint) -> Iterator[ModelChange]:
    """Yield the parts of a model that change for a blueprint."""
    own, ends = model.blueprint, ends_of(model.blueprint)
    if own.space.size != wanted.space.size:
        sizes = " becomes ".join(dimensions(b.space.size) for b in (own, wanted))
        yield ModelChange("size", f"{sizes}: the network and its schedule stay")
    if own.space.level_range != wanted.space.level_range:
        text = f"{_levels(own)} become {_levels(wanted)}: the contrast of samples changes"
        yield ModelChange("scale", text)
    changed = [n for n in NOISE if getattr(own.diffusion, n) != getattr(wanted.diffusion, n)]
    if changed:
        text = ", ".join(name.replace("_", "-") for name in changed)
        yield ModelChange(
            "noise", f"another {text}: the noise at a timestep differs from the model's"
        )
    if ends is not None:
        yield from _find_channel_changes(own, wanted, ends)
        yield from _find_variance_changes(own, wanted, ends)
        yield from _find_given_changes(own, wanted, ends)
        yield from _find_class_changes(model, wanted, ends)
        yield from _find_column_changes(own, wanted, ends)


def _find_channel_changes(own: Blueprint, wanted: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    before, after = own.space.channels, wanted.space.channels
    if before == after:
        return
    text = f"{min(before, after)} reused, " + (
        f"{after - before} new, at 0" if after > before else f"{before - after} left out"
    )
    if (before, after) == (GREY, COLOR):
        text = "grey becomes color: grey stays as it was, and color differences are new"
    elif (before, after) == (COLOR, GREY):
        text = "color becomes grey: input as before, output as the mean of the colors"
    drawn = after * (1 + (learns_variance(own) and learns_variance(wanted)))
    read = after * (1 + wanted.wiener)
    count = _count_input(wanted, ends, read) + _count_output(wanted, ends, drawn)
    yield ModelChange("channels", text, count)


def _find_variance_changes(own: Blueprint, wanted: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    if learns_variance(own) == learns_variance(wanted):
        return
    gone = learns_variance(own)
    of = own if gone else wanted
    count = _count_output(of, ends, of.space.channels)
    if gone:
        text = f"left out: the variance is {wanted.diffusion.variance}, not learned"
    else:
        text = f"new: at first {own.diffusion.variance}, as before"
    yield ModelChange("variance", text, count, gone)


def _find_given_changes(own: Blueprint, wanted: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    old, new = own.conditions.given, wanted.conditions.given
    if old and not new:
        never = ", for which it was not trained" if old.dropout == 0 else ""
        count = _count_input(own, ends, own.conditions.given_channels)
        text = f"left out: {old.what}, at first like a model run without it{never}"
        yield ModelChange("given", text, count, gone=True)
    elif new and (not old or (old.what, old.channels) != (new.what, new.channels)):
        count = _count_input(wanted, ends, wanted.conditions.given_channels)
        text = f"new, at 0: {new.what}, without effect at first"
        if old:
            text = f"{old.what} becomes {new.what}: reused"
        yield ModelChange("given", text, count)


def _find_class_changes(model: StoredModel, wanted: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    old, names = model.blueprint.conditions.classes, wanted.conditions.classes
    if old == names or has_numbered_classes(model, names):
        return
    of = wanted if names else model.blueprint
    count = math.prod(of.shapes[ends.classes])
    if not old:
        text = f"new, at 0: {list_names(names)}, without effect at first"
    elif not names:
        text = "left out, at first like a model run without a class"
    else:
        kept = [name for name in names if name in old]
        new = [name for name in names if name not in old]
        text = f"{len(kept):,} of {len(names):,} reused by name"
        text += f": {list_names(kept)}" if kept else ""
        if new:
            text += f", {len(new):,} new, at first as without a class: {list_names(new)}"
    yield ModelChange("classes", text, count, gone=not names)


def _find_column_changes(own: Blueprint, wanted: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    old, new = (b.conditions.table.names if b.conditions.table else {} for b in (own, wanted))
    if own.conditions.table == wanted.conditions.table:
        return
    for gone, of, names in ((False, wanted, [*new]), (True, own, [n for n in old if n not in new])):
        if not names:
            continue
        table = of.conditions.table
        assert table is not None
        places = [[*table.names].index(name) for name in names]
        starts = tuple(f"{ends.columns}.{k}." for k in places)
        count = sum(math.prod(s) for name, s in of.shapes.items() if name.startswith(starts))
        kept = [name for name in names if name in old and type(old[name]) is type(new.get(name))]
        rest = [name for name in names if name not in kept]
        text = f"left out: {list_names(rest)}, at first like a model run without them"
        if not gone:
            found = [f"reused by name: {list_names(kept)}"] if kept else []
            found += [f"new, at 0: {list_names(rest)}"] if rest else []
            text = ", ".join(found)
        yield ModelChange("columns", text, count, gone)


def _count_input(of: Blueprint, ends: Ends, channels: int) -> int:
    """Count the parameters by which a network reads a number of channels."""
    every = of.input_space.channels + of.conditions.given_channels
    return math.prod(of.shapes[ends.input]) * channels // every


def _count_output(of: Blueprint, ends: Ends, channels: int) -> int:
    """Count the parameters by which a network predicts a number of channels."""
    every = of.space.channels * (1 + learns_variance(of))
    return sum(math.prod(of.shapes[n]) for n in (ends.output, ends.output_bias)) * channels // every
