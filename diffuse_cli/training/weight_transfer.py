"""Transfer a model's weights to a model with other channels, conditions, classes or columns.

Weights that fit are reused. New weights start such that the network first computes the same output
as the model without the new conditions. If the channels differ, this holds for grey samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from diffuse_cli.core import Conditions, Ends, LabelColumn
from diffuse_cli.core.parameterization import LEARNED
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.system.rng import philox

GREY, COLOR = 1, 3
"""Numbers of channels that are converted into each other. Other channels keep their places."""

FRACTION = {"small": -1.0, "large": 1.0}
"""The output of a learned variance that equals a fixed variance (Nichol & Dhariwal 2021, eq. 15).
"""


def transfer(model: StoredModel, tuned: Blueprint, seed: int = 0) -> Mapping[str, Tensor]:
    """Convert a model's EMA weights for a blueprint of the same network.

    Args:
        seed: the seed of new input weights for colors, for a model of grey samples.
    """
    base, weights = model.blueprint, dict(model.ema)
    ends = base.architecture.ENDS
    if ends is None:
        return weights
    weights[ends.input] = combine_channels(weights[ends.input], input_matrix(base, tuned), 1)
    if (base.space.channels, tuned.space.channels) == (GREY, COLOR):
        weights[ends.input] += color_differences(weights[ends.input], tuned, seed)
    for name in (ends.output, ends.output_bias):
        weights[name] = combine_channels(weights[name], output_matrix(base, tuned), 0)
    if learns_variance(tuned) and not learns_variance(base):
        _, variance = weights[ends.output_bias].chunk(2)
        variance.fill_(FRACTION.get(base.diffusion.variance, 0.0))
    _fit_classes(weights, ends, model, tuned.conditions)
    for added in removed_columns(model, ends, tuned):
        weights[ends.class_bias] = weights[ends.class_bias] + added
    return convert_columns(weights, ends.columns, base, tuned)


def learns_variance(blueprint: Blueprint) -> bool:
    """Whether the network's output includes the variance."""
    return blueprint.diffusion.variance in LEARNED


def input_matrix(base: Blueprint, tuned: Blueprint) -> Tensor:
    """Return the matrix from the input channels of one network to another's."""
    old, new = base.conditions, tuned.conditions
    given = [zero_matrix(new.given_channels, old.given_channels)]
    if old.given and new.given:  # the last channel is the mask
        given = [sample_matrix(old.given.channels, new.given.channels), sample_matrix(1, 1)]
    sample = sample_matrix(base.space.channels, tuned.space.channels)
    matrix: Tensor = torch.block_diag(*[sample] * (1 + base.wiener), *given)
    return matrix


def output_matrix(base: Blueprint, tuned: Blueprint) -> Tensor:
    """Return the matrix from the output channels of one network to another's."""
    before, after = base.space.channels, tuned.space.channels
    sample = sample_matrix(after, before).T  # grey as each color, colors as their mean
    learned = learns_variance(tuned), learns_variance(base)
    variance = sample if all(learned) else zero_matrix(after * learned[0], before * learned[1])
    matrix: Tensor = torch.block_diag(sample, variance)
    return matrix


def sample_matrix(before: int, after: int) -> Tensor:
    """Return the input matrix for samples: grey is the mean of colors, colors repeat grey."""
    if (before, after) == (GREY, COLOR):
        return zero_matrix(after, before) + 1 / COLOR
    if (before, after) == (COLOR, GREY):
        return zero_matrix(after, before) + 1
    return torch.eye(after, before, dtype=torch.float64)


def zero_matrix(after: int, before: int) -> Tensor:
    """Return a matrix that leaves out all old channels and starts new channels at 0."""
    return torch.zeros(after, before, dtype=torch.float64)


def combine_channels(weight: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Combine the channels of a tensor along `dim`, each with its places in a patch."""
    after, before = matrix.shape
    if after == before and bool((matrix == sample_matrix(before, after)).all()):
        return weight
    parts = weight.double().unflatten(dim, (before, -1))
    combined = torch.tensordot(matrix, parts, dims=([1], [dim])).movedim(0, dim)
    fit: Tensor = combined.flatten(dim, dim + 1).to(weight.dtype).contiguous()
    return fit


def color_differences(weight: Tensor, tuned: Blueprint, seed: int) -> Tensor:
    """Return new input weights, like `weight`, for color differences: 0 in sum at each place.

    If the input ignored color differences and the output predicted none, neither would get a
    gradient to learn them. The new weights are as large as a new convolution's.
    """
    channels = tuned.space.channels
    every = tuned.input_space.channels + tuned.conditions.given_channels
    shape = (len(weight), channels, weight.shape[1] // every, *weight.shape[2:])
    bound = weight[0].numel() ** -0.5
    noise = torch.from_numpy(philox(seed, "colours").uniform(-bound, bound, shape))
    differences = torch.zeros_like(weight)
    centered = noise - noise.mean(1, keepdim=True)
    differences[:, : channels * shape[2]] = centered.flatten(1, 2).to(weight.dtype)
    return differences


def has_numbered_classes(model: StoredModel, names: tuple[str, ...]) -> bool:
    """Whether a converted model's classes have numbers as names, one for each of `names`."""
    old = model.blueprint.conditions.classes
    return not model.data and old == tuple(map(str, range(len(names)))) and old != names


def dropped_label(rows: Tensor, never: bool) -> Tensor:
    """Return the embedding of a dropped label, (D,), or the labels' mean if it was not learned."""
    return rows[:-1].mean(0) if never else rows[-1]


def removed_columns(model: StoredModel, ends: Ends, tuned: Blueprint) -> Iterator[Tensor]:
    """Yield the embedding, (D,), of each removed column when it is dropped.

    For labels it is their mean if the model was trained without dropping them.
    """
    old_table, new_table = model.blueprint.conditions.table, tuned.conditions.table
    for k, column in enumerate(old_table.columns if old_table else ()):
        if new_table and column.name in new_table.names:
            continue
        if isinstance(column, LabelColumn):
            never = model.always_conditioned and not column.missing
            yield dropped_label(model.ema[f"{ends.columns}.{k}.weight"], never)
        else:
            yield model.ema[f"{ends.columns}.{k}.untold"]


def _fit_classes(
    weights: dict[str, Tensor], ends: Ends, model: StoredModel, conditions: Conditions
) -> None:
    """Match class embeddings by name. A new class starts as no class."""
    old, names = model.blueprint.conditions.classes, conditions.classes
    bias = weights[ends.class_bias]
    if old == names or has_numbered_classes(model, names):
        return
    if not old:
        weights[ends.classes] = bias.new_zeros(len(names) + 1, len(bias))
        return
    rows = weights.pop(ends.classes)
    no_class = dropped_label(rows, model.always_conditioned)
    if not names:
        weights[ends.class_bias] = bias + no_class
        return
    places = {name: k for k, name in enumerate(old)}
    embeddings = [rows[places[name]] if name in places else no_class for name in names]
    weights[ends.classes] = torch.stack([*embeddings, rows[-1]])


def convert_columns(
    weights: Mapping[str, Tensor], embedding: str, base: Blueprint, tuned: Blueprint
) -> Mapping[str, Tensor]:
    """Convert weights between metadata tables, matching columns and labels by name.

    A new column or label starts at 0, so the model's output does not change at first.

    Args:
        embedding: `Ends.columns` of the network.
    """
    old_table, new_table = base.conditions.table, tuned.conditions.table
    if old_table == new_table:
        return weights
    converted = {name: w for name, w in weights.items() if not name.startswith(f"{embedding}.")}
    places = {name: k for k, name in enumerate(old_table.names)} if old_table else {}
    for k, column in enumerate(new_table.columns if new_table else ()):
        old = old_table.find(column) if old_table else None
        for name in (n for n in tuned.shapes if n.startswith(f"{embedding}.{k}.")):
            suffix = name.removeprefix(f"{embedding}.{k}.")
            after = torch.zeros(tuned.shapes[name])
            if old:
                before = weights[f"{embedding}.{places[column.name]}.{suffix}"]
                after = _match_labels(before, after, old, column)
            elif suffix.startswith("linear_1."):  # the first layer; the last layer stays 0
                torch.nn.init.uniform_(after, -1, 1, torch.Generator().manual_seed(k))
            converted[name] = after
    return converted


def _match_labels(before: Tensor, after: Tensor, old: object, column: object) -> Tensor:
    if not (isinstance(old, LabelColumn) and isinstance(column, LabelColumn)):
        return before
    after[-1] = before[-1]
    for row, value in enumerate(column.values):
        if (place := old.code(value)) == place:
            after[row] = before[int(place)]
    return after
