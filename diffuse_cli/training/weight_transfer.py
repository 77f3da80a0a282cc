"""The weights of a model as those of another: of other channels, given something else, or of other
classes or columns.

What fits is taken. What is new begins such that the network computes at first what the model
did, told nothing of what is new; where samples have other channels, it does of grey ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from diffuse_cli.core.conditions import Labels
from diffuse_cli.core.networks import NETWORKS, Ends
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.system.rng import philox

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.conditions import Conditions, MetadataTable
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.models.model_file import StoredModel

GREY, COLOUR = 1, 3
"""Channels of samples that are converted; of others each is taken in its place."""

FRACTION = {"small": -1.0, "large": 1.0}
"""The output of a learned variance that is this fixed one (Nichol & Dhariwal 2021, eq. 15)."""


def ends_of(blueprint: Blueprint) -> Ends | None:
    """The tensors that fit only one kind of samples and conditions, if the network names them."""
    ends: Ends | None = getattr(NETWORKS[blueprint.network], "ENDS", None)
    return ends


def fitted(model: StoredModel, wanted: Blueprint, seed: int = 0) -> Mapping[str, Tensor]:
    """The averaged weights of a model for a blueprint of the same network.

    Args:
        seed: of how a model of grey samples first sees colours.
    """
    own, ends, weights = model.blueprint, ends_of(model.blueprint), dict(model.ema)
    if ends is None:
        return weights
    weights[ends.input] = combined(weights[ends.input], reading(own, wanted), 1)
    if (own.space.channels, wanted.space.channels) == (GREY, COLOUR):
        weights[ends.input] += differences(weights[ends.input], wanted, seed)
    for name in (ends.output, ends.output_bias):
        weights[name] = combined(weights[name], writing(own, wanted), 0)
    if learns(wanted) and not learns(own):
        _, variance = weights[ends.output_bias].chunk(2)
        variance.fill_(FRACTION.get(own.diffusion.variance, 0.0))
    _fit_classes(weights, ends, model, wanted.conditions)
    tables = own.conditions.table, wanted.conditions.table
    for added in without(model, ends, *tables):
        weights[ends.class_bias] = weights[ends.class_bias] + added
    return with_columns(weights, ends.columns, *tables, wanted.shapes)


def learns(blueprint: Blueprint) -> bool:
    """Whether the network's output has the variance after the samples."""
    return blueprint.diffusion.variance in LEARNED


# -- channels: matrices (after, before) -----------------------------------------------------------


def reading(own: Blueprint, wanted: Blueprint) -> Tensor:
    """How the channels that a network reads become those of another."""
    old, new = own.conditions, wanted.conditions
    given = [zeros(new.given_channels, old.given_channels)]
    if old.given and new.given:  # its last channel says where it is
        given = [read(old.given.channels, new.given.channels), read(1, 1)]
    return beside(read(own.space.channels, wanted.space.channels), *given)


def writing(own: Blueprint, wanted: Blueprint) -> Tensor:
    """How the channels that a network predicts become those of another."""
    before, after = own.space.channels, wanted.space.channels
    sample = read(after, before).T  # grey as each colour, colours as their mean
    if learns(own) and learns(wanted):
        return beside(sample, sample)
    return beside(sample, zeros(after * learns(wanted), before * learns(own)))


def beside(*parts: Tensor) -> Tensor:
    """A matrix for the channels of all parts, one after the other."""
    whole: Tensor = torch.block_diag(*parts)
    return whole


def read(before: int, after: int) -> Tensor:
    """How samples are read: grey as the mean of its colours, colours as if all were grey."""
    if (before, after) == (GREY, COLOUR):
        return zeros(after, before) + 1 / COLOUR
    if (before, after) == (COLOUR, GREY):
        return zeros(after, before) + 1
    return torch.eye(after, before, dtype=torch.float64)


def zeros(after: int, before: int) -> Tensor:
    """A matrix by which all is left out, and all is new."""
    return torch.zeros(after, before, dtype=torch.float64)


def combined(weight: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """A tensor whose channels along `dim`, each with its places in a patch, are combined."""
    after, before = matrix.shape
    if after == before and bool((matrix == read(before, after)).all()):
        return weight
    parts = weight.double().unflatten(dim, (before, -1))
    done = torch.tensordot(matrix, parts, dims=([1], [dim])).movedim(0, dim)
    fit: Tensor = done.flatten(dim, dim + 1).to(weight.dtype).contiguous()
    return fit


def differences(weight: Tensor, wanted: Blueprint, seed: int) -> Tensor:
    """New weights of the input, like `weight`, for how channels differ: 0 in sum, for each place.

    If the input did not see the differences between channels, and the output predicted none,
    neither had a gradient by which to learn them. As large as a new convolution's.
    """
    channels = wanted.space.channels
    every = channels + wanted.conditions.given_channels
    shape = (len(weight), channels, weight.shape[1] // every, *weight.shape[2:])
    bound = weight[0].numel() ** -0.5
    drawn = torch.from_numpy(philox(seed, "colours").uniform(-bound, bound, shape))
    found = torch.zeros_like(weight)
    centred = drawn - drawn.mean(1, keepdim=True)
    found[:, : channels * shape[2]] = centred.flatten(1, 2).to(weight.dtype)
    return found


# -- classes and columns --------------------------------------------------------------------------


def numbered(model: StoredModel, names: tuple[str, ...]) -> bool:
    """Whether the classes of a converted model have numbers for names, one for each of `names`."""
    old = model.blueprint.conditions.classes
    return not model.data and old == tuple(map(str, range(len(names)))) and old != names


def untold(rows: Tensor, never: bool) -> Tensor:
    """What is added where a label is not told, (D,): its row, or the mean of the labels if it was
    never learned."""
    return rows[:-1].mean(0) if never else rows[-1]


def without(
    model: StoredModel, ends: Ends, own: MetadataTable | None, wanted: MetadataTable | None
) -> Iterator[Tensor]:
    """What is added for each column that is left out where it is not told, (D,); of labels their
    mean if that was never learned."""
    for k, column in enumerate(own.columns if own else ()):
        if wanted and column.name in wanted.names:
            continue
        if isinstance(column, Labels):
            never = model.training.get("label_dropout") == 0 and not column.missing
            yield untold(model.ema[f"{ends.columns}.{k}.weight"], never)
        else:
            yield model.ema[f"{ends.columns}.{k}.untold"]


def _fit_classes(
    weights: dict[str, Tensor], ends: Ends, model: StoredModel, wanted: Conditions
) -> None:
    """Rows by name; a new class begins as no class, and a model without classes as before."""
    old, names = model.blueprint.conditions.classes, wanted.classes
    bias = weights[ends.class_bias]
    if old == names or (old and numbered(model, names)):
        return
    if not old:
        weights[ends.classes] = bias.new_zeros(len(names) + 1, len(bias))
        return
    rows = weights.pop(ends.classes)
    nothing = untold(rows, model.training.get("label_dropout") == 0)
    if not names:
        weights[ends.class_bias] = bias + nothing
        return
    places = {name: k for k, name in enumerate(old)}
    found = [rows[places[name]] if name in places else nothing for name in names]
    weights[ends.classes] = torch.stack([*found, rows[-1]])


def with_columns(
    weights: Mapping[str, Tensor],
    embedding: str,
    own: MetadataTable | None,
    wanted: MetadataTable | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Mapping[str, Tensor]:
    """The weights of a model of the table `own` for the table `wanted`: columns by their names, and
    labels by theirs. A new column or label begins at 0, so that the model begins as it was.

    Args:
        embedding: `Ends.columns` of the network.
        shapes: of the tensors that are wanted.
    """
    if own == wanted:
        return weights
    done = {name: of for name, of in weights.items() if not name.startswith(f"{embedding}.")}
    places = {name: k for k, name in enumerate(own.names)} if own else {}
    for k, column in enumerate(wanted.columns if wanted else ()):
        old = own.names.get(column.name) if own else None
        for name in (n for n in shapes if n.startswith(f"{embedding}.{k}.")):
            rest = name.removeprefix(f"{embedding}.{k}.")
            found = torch.zeros(shapes[name])
            if old and type(old) is type(column):
                before = weights[f"{embedding}.{places[column.name]}.{rest}"]
                found = _by_label(before, found, old, column)
            elif rest.startswith("linear_1."):  # what reads the number; what it says is 0
                torch.nn.init.uniform_(found, -1, 1, torch.Generator().manual_seed(k))
            done[name] = found
    return done


def _by_label(before: Tensor, found: Tensor, old: object, column: object) -> Tensor:
    if not (isinstance(old, Labels) and isinstance(column, Labels)):
        return before
    found[-1] = before[-1]
    for row, value in enumerate(column.values):
        if (place := old.code(value)) == place:
            found[row] = before[int(place)]
    return found
