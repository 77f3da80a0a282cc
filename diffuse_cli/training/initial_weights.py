"""Initial weights of a run with --init, and a report of the parts that change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from diffuse_cli.core import Ends, MetadataTable, Settings
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.media import MEDIA
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.system import Notice, Table, UsageError, Work, files
from diffuse_cli.training import weight_transfer
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.training_conditions import list_names

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
        removed: whether the parameters are left out.
    """

    name: str
    text: str
    parameters: int | None = None
    removed: bool = False


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
    if config.distills:
        _check_student(source, model, blueprint)
    if plan.data.images.summary.greyed:
        medium = MEDIA[blueprint.space.medium]
        kinds, channels = medium.kinds, medium.most_channels
        hint = f"Use --channels {channels} to train in {kinds[channels]}"
        yield Notice(f"{kinds[1]} like the model of --init. {hint}")
    yield from (Notice(text, warning=True) for text in _warnings(source, model, blueprint))
    yield from _report_changes(source, list(find_changes(model, blueprint)), blueprint)
    return weight_transfer.transfer(model, blueprint, config.seed)


def _check_network(source: str, base: Blueprint, tuned: Blueprint) -> None:
    """Refuse a blueprint that cannot use the weights.

    Raises:
        UsageError: the samples or the network are of another kind.
    """
    kinds = [(b.space.medium, b.space.levels, b.space.mean, b.space.std) for b in (base, tuned)]
    if kinds[0] != kinds[1] or base.space.dims != tuned.space.dims:
        text = f"--init {source} was trained on another kind of data"
        raise UsageError(text, "Remove it, or use data like the model's", code="data_mismatch")
    if base.wiener != tuned.wiener:
        trained = "with" if base.wiener else "without"
        text = f"--init {source} was trained {trained} --wiener"
        hint = "Leave out --wiener and --no-wiener, which come from the model"
        raise UsageError(text, hint, code="option_unsuited", option="--wiener")
    resized = base.architecture.resized(base.config, base.space.size, tuned.space.size)
    networks = [
        (base.network, resized, _shapes(base)),
        (tuned.network, tuned.config, _shapes(tuned)),
    ]
    if networks[0] != networks[1]:
        text = f"--init {source} has another network than this configuration"
        hint = "Remove the network's options: they come from the model"
        raise UsageError(text, hint, code="model_mismatch")


def _check_student(source: str, teacher: StoredModel, tuned: Blueprint) -> None:
    """Refuse to distil on data of other levels or conditions.

    Raises:
        UsageError: one of them differs from the teacher's.
    """
    base = teacher.blueprint
    if base.space.level_range != tuned.space.level_range:
        text = f"{source} was trained on {_levels(base)}, not {_levels(tuned)}"
        raise UsageError(text, "Use the data that it was trained on", code="data_mismatch")
    for name, words in CONDITIONS.items():
        old, new = getattr(base.conditions, name), getattr(tuned.conditions, name)
        same = _describe_encoding(old) == _describe_encoding(new)
        if not same and not (
            name == "classes"
            and weight_transfer.has_numbered_classes(teacher, tuned.conditions.classes)
        ):
            text = f"{source} was trained with other {words}, which a distilled model must keep"
            raise UsageError(text, "Use the data that it was trained on", code="data_mismatch")


def _describe_encoding(value: object) -> object:
    """Return the part of a condition that decides its encoding, without statistics of samples."""
    if isinstance(value, MetadataTable):
        return tuple(map(_describe_encoding, value.columns))
    if isinstance(value, Settings):
        return {name: value for name, value in value.to_dict().items() if name not in STATISTICS}
    return value


def _levels(blueprint: Blueprint) -> str:
    """Return the levels that a model sees at -1 and 1."""
    assert blueprint.space.level_range is not None
    return "levels {:,} to {:,}".format(*blueprint.space.level_range)


def _shapes(blueprint: Blueprint) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that do not depend on samples and conditions."""
    ends, shapes = blueprint.architecture.ENDS, dict(blueprint.shapes)
    if ends is None:
        return shapes
    changed = (ends.input, ends.output, ends.output_bias, ends.classes)
    return {
        name: shape
        for name, shape in shapes.items()
        if name not in changed and not name.startswith(f"{ends.columns}.")
    }


def _warnings(source: str, model: StoredModel, tuned: Blueprint) -> Iterator[str]:
    base, names = model.blueprint, tuned.conditions.classes
    if base.diffusion.target != tuned.diffusion.target:
        yield (
            f"--target {tuned.diffusion.target} differs from {source}, which predicts "
            f"{base.diffusion.target}: its output layer is learned again"
        )
    given = base.conditions.given
    if given and given.is_paired and not tuned.conditions.given:
        yield f"{source} was trained with --given on pairs, and this run has no --given"
    if weight_transfer.has_numbered_classes(model, names):
        yield (
            f"the classes of {source} have no names, so they follow the order of the folders: "
            f"{list_names(names)}"
        )


def _report_changes(source: str, changes: list[ModelChange], tuned: Blueprint) -> Work[None]:
    """Report that all parameters are reused, or a table of the parts that change."""
    total = count_parameters(tuned.build_on_meta())
    if not changes:
        yield Notice(f"starting from {source}: all {total:,} parameters are reused")
        return
    new = sum(part.parameters or 0 for part in changes if not part.removed)
    unchanged = ModelChange("the rest", "unchanged", total - new)
    rows = [
        (part.name, "" if part.parameters is None else f"{part.parameters:,}", part.text)
        for part in (*changes, unchanged)
    ]
    yield Notice(f"starting from {source}:")
    yield Table((("part", "parameters", "change"), *rows))


def find_changes(model: StoredModel, tuned: Blueprint) -> Iterator[ModelChange]:
    """Yield the parts of a model that change for a blueprint."""
    base = model.blueprint
    ends = base.architecture.ENDS
    if base.space.size != tuned.space.size:
        sizes = " becomes ".join(b.space.size_text for b in (base, tuned))
        yield ModelChange("size", f"{sizes}: the network and its schedule stay")
    if base.space.level_range != tuned.space.level_range:
        text = f"{_levels(base)} become {_levels(tuned)}: the contrast of samples changes"
        yield ModelChange("scale", text)
    changed = [n for n in NOISE if getattr(base.diffusion, n) != getattr(tuned.diffusion, n)]
    if changed:
        text = ", ".join(name.replace("_", "-") for name in changed)
        yield ModelChange(
            "noise", f"another {text}: the noise at a timestep differs from the model's"
        )
    if ends is not None:
        yield from _find_channel_changes(base, tuned, ends)
        yield from _find_variance_changes(base, tuned, ends)
        yield from _find_given_changes(base, tuned, ends)
        yield from _find_class_changes(model, tuned, ends)
        yield from _find_column_changes(base, tuned, ends)


def _find_channel_changes(base: Blueprint, tuned: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    before, after = base.space.channels, tuned.space.channels
    if before == after:
        return
    text = f"{min(before, after)} reused, " + (
        f"{after - before} new, at 0" if after > before else f"{before - after} left out"
    )
    if (before, after) == (weight_transfer.GREY, weight_transfer.COLOR):
        text = "grey becomes color: grey stays as it was, and color differences are new"
    elif (before, after) == (weight_transfer.COLOR, weight_transfer.GREY):
        text = "color becomes grey: input as before, output as the mean of the colors"
    predicted = after * (
        1 + (weight_transfer.learns_variance(base) and weight_transfer.learns_variance(tuned))
    )
    read = after * (1 + tuned.wiener)
    count = _count_input(tuned, ends, read) + _count_output(tuned, ends, predicted)
    yield ModelChange("channels", text, count)


def _find_variance_changes(base: Blueprint, tuned: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    if weight_transfer.learns_variance(base) == weight_transfer.learns_variance(tuned):
        return
    removed = weight_transfer.learns_variance(base)
    owner = base if removed else tuned
    count = _count_output(owner, ends, owner.space.channels)
    if removed:
        text = f"left out: the variance is {tuned.diffusion.variance}, not learned"
    else:
        text = f"new: at first {base.diffusion.variance}, as before"
    yield ModelChange("variance", text, count, removed)


def _find_given_changes(base: Blueprint, tuned: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    old, new = base.conditions.given, tuned.conditions.given
    if old and not new:
        never = ", for which it was not trained" if old.dropout == 0 else ""
        count = _count_input(base, ends, base.conditions.given_channels)
        text = f"left out: {old.what}, at first like a model run without it{never}"
        yield ModelChange("given", text, count, removed=True)
    elif new and (not old or (old.what, old.channels) != (new.what, new.channels)):
        count = _count_input(tuned, ends, tuned.conditions.given_channels)
        text = f"new, at 0: {new.what}, without effect at first"
        if old:
            text = f"{old.what} becomes {new.what}: reused"
        yield ModelChange("given", text, count)


def _find_class_changes(model: StoredModel, tuned: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    old, names = model.blueprint.conditions.classes, tuned.conditions.classes
    if old == names or weight_transfer.has_numbered_classes(model, names):
        return
    owner = tuned if names else model.blueprint
    count = math.prod(owner.shapes[ends.classes])
    if not old:
        text = f"new, at 0: {list_names(names)}, without effect at first"
    elif not names:
        text = "left out, at first like a model run without a class"
    else:
        reused = [name for name in names if name in old]
        new = [name for name in names if name not in old]
        text = f"{len(reused):,} of {len(names):,} reused by name"
        text += f": {list_names(reused)}" if reused else ""
        if new:
            text += f", {len(new):,} new, at first as without a class: {list_names(new)}"
    yield ModelChange("classes", text, count, removed=not names)


def _find_column_changes(base: Blueprint, tuned: Blueprint, ends: Ends) -> Iterator[ModelChange]:
    old_table, new_table = base.conditions.table, tuned.conditions.table
    if old_table == new_table:
        return
    old = old_table.names if old_table else {}
    new = new_table.names if new_table else {}
    lost = [name for name in old if name not in new]
    for removed, owner, names in ((False, tuned, [*new]), (True, base, lost)):
        if not names:
            continue
        table = owner.conditions.table
        assert table is not None
        places = [[*table.names].index(name) for name in names]
        starts = tuple(f"{ends.columns}.{k}." for k in places)
        count = sum(math.prod(s) for name, s in owner.shapes.items() if name.startswith(starts))
        reused = [n for n in names if old_table and n in new and old_table.find(new[n])]
        unmatched = [name for name in names if name not in reused]
        text = f"left out: {list_names(unmatched)}, at first like a model run without them"
        if not removed:
            parts = [f"reused by name: {list_names(reused)}"] if reused else []
            parts += [f"new, at 0: {list_names(unmatched)}"] if unmatched else []
            text = ", ".join(parts)
        yield ModelChange("columns", text, count, removed)


def _count_input(blueprint: Blueprint, ends: Ends, channels: int) -> int:
    """Count the parameters by which a network reads a number of channels."""
    every = blueprint.input_space.channels + blueprint.conditions.given_channels
    return math.prod(blueprint.shapes[ends.input]) * channels // every


def _count_output(blueprint: Blueprint, ends: Ends, channels: int) -> int:
    """Count the parameters by which a network predicts a number of channels."""
    every = blueprint.space.channels * (1 + weight_transfer.learns_variance(blueprint))
    names = ends.output, ends.output_bias
    return sum(math.prod(blueprint.shapes[n]) for n in names) * channels // every
