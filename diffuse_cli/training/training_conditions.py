"""Conditions of a model in training: metadata columns, classes and conditioning images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.config.task_options import is_degradation
from diffuse_cli.config.train_options import GIVEN_DROPOUT, TrainConfig
from diffuse_cli.core import (
    DEGRADATIONS,
    LABELS,
    PAIRS,
    ConditioningArray,
    Conditions,
    MetadataTable,
    NumberColumn,
    Space,
    VectorColumn,
)
from diffuse_cli.core.registry import suggest
from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.data import (
    Dataset,
    Pairs,
    is_images,
    label_maps,
    match_pairs,
    metadata_columns,
    read_cells,
    samples,
)
from diffuse_cli.media import MEDIA, Indices
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.system import DataError, Notice, UsageError, Work, files


def read_metadata(
    config: TrainConfig,
    images: Dataset,
    train: Indices,
    table: MetadataTable | None,
    continued: bool,
) -> Work[tuple[Dataset, MetadataTable]]:
    """Read the metadata columns of --condition-on, and add their codes to the images.

    A continued run keeps its columns. With --init, numbers keep the scale of the model.

    Args:
        train: the indices of the training images.
        table: the columns of the model that the run continues or starts from, if any.
        continued: whether the run continues it.

    Raises:
        DataError: the metadata is missing or unusable, or, with --strict, an image has no row.
        UsageError: a column does not exist.
    """
    assert config.condition_on is not None
    columns, vectors = metadata_columns.split_vector_file(config.condition_on)
    names = metadata_columns.parse_column_names(columns)
    cells = read_cells(config.data, images.names, names, vectors)
    for line in cells.lines:
        if config.strict:
            hint = "Remove --strict to train with them"
            raise DataError(line, hint, code="metadata_mismatch", path=config.data)
        yield Notice(line, warning=True)
    if table is None or not continued:
        new = metadata_columns.make_table(columns, cells, train)
        table = _keep_scale(new, table)
    if not fits_header(table.to_dict()):
        text = "--condition-on: the labels and vectors do not fit into a model file"
        raise DataError(text, "Choose other columns", code="option_unsuited")
    for line in metadata_columns.describe_unknown_labels(table, cells):
        yield Notice(line, warning=True)
    for column in table.columns:
        text = metadata_columns.describe_column(column)
        yield Notice(f"conditioned on {files.shorten(column.name)}: {text}")
    return replace(images, rows=metadata_columns.encode_rows(table, cells)), table


def _keep_scale(table: MetadataTable, model_table: MetadataTable | None) -> MetadataTable:
    """Return the table with numbers and vectors on the scale of a model with the same columns."""
    columns = []
    for column in table.columns:
        old = model_table.find(column) if model_table else None
        if isinstance(column, NumberColumn) and isinstance(old, NumberColumn):
            column = replace(column, mean=old.mean, deviation=old.deviation)
        if isinstance(column, VectorColumn) and isinstance(old, VectorColumn):
            column = replace(column, mean=old.mean, deviation=old.deviation)
        columns.append(column)
    return MetadataTable(columns=tuple(columns))


# The classes of the images, checked against the classes of a run or a model.

NAMED = 5
"""The most classes that a message names."""

CLASSES_BYTES = 750_000
"""Bytes for the names of classes, as JSON, in the header of a model file."""


def class_names(config: TrainConfig, images: Dataset, continued: bool) -> tuple[str, ...]:
    """Return the names of the classes, none without --classes.

    Args:
        continued: whether a run continues, which keeps its classes.

    Raises:
        DataError: the images are in fewer than two class folders, or in more than fit into a model
            file, or the classes are nearly as many as the images.
    """
    if not config.classes:
        return ()
    if len(images.class_names) < 2 and config.distills:
        text = "the model was trained with classes, and the images are not in class folders"
        hint = "Put each class into a folder of its name"
        raise DataError(text, hint, code="data_mismatch", path=config.data)
    if len(images.class_names) < 2:
        text = "--classes: the images are not in class folders"
        remedy = "pass --no-classes" if config.init else "remove --classes"
        hint = f"Put each class into a folder of its name, or {remedy}"
        raise DataError(text, hint, code="option_unsuited", path=config.data)
    if not fits_header(images.class_names):
        raise DataError(
            f"--classes: the names of {len(images.class_names):,} class folders do not fit into a "
            "model file",
            "Remove --classes",
            code="option_unsuited",
        )
    if not continued:
        metadata_columns.check_labels(
            "--classes", images.class_names, int((images.labels >= 0).sum())
        )
    return images.class_names


def fits_header(names: object) -> bool:
    """Whether names, as plain values, fit into the header of a model file."""
    return len(json.dumps(names)) <= CLASSES_BYTES


def check_names(conditions: Conditions, images: Dataset, source: str) -> None:
    """Refuse images of a source whose class names differ from the run's.

    Raises:
        UsageError: the names differ.
    """
    before, now = set(conditions.classes), set(images.class_names)
    if before == now:
        return
    changes = {"missing": before - now, "new": now - before}
    listed = "; ".join(f"{word} {list_names(names)}" for word, names in changes.items() if names)
    raise UsageError(
        f"the class folders in {files.show(source)} have changed since this run started: {listed}",
        "Restore their names, or start another run with --init, which keeps classes by name",
        code="run_differs",
        path=source,
    )


def list_names(names: Iterable[str]) -> str:
    """List names of classes for a sentence, at most `NAMED` of them."""
    listed = sorted(map(files.show, names))
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


# Paired images, or a degradation of the images themselves.

AUTO, IMAGE = "auto", "image"
"""The default of --given-kind, and the medium of images, which is its other kind."""

PAIR_LAYOUTS: Mapping[str | None, str | None] = {"L": None, "HW": None, "DHW": "CDHW"}
"""Layouts of pairs of samples whose layout has no channels, which the pairs may have. Other pairs
have the layout of the samples."""

NARROW = 0.1
"""Fraction of the range of levels below which conditioning images are warned of."""


def find_pairs(given: str | None) -> str | None:
    """Return the folder or zip file of --given, or None for a degradation or without --given.

    Raises:
        DataError: the value is neither an existing path nor a degradation.
    """
    if given is None or is_degradation(given):
        return None
    if not (is_images(path := Path(given)) or path.exists()):
        text = f"--given {files.show(given)} is not a file, a folder or a degradation"
        hint = suggest(given.partition(":")[0], DEGRADATIONS)
        raise DataError(text, hint, code="data_missing", path=given)
    return given


def read_training_pairs(
    config: TrainConfig,
    images: Dataset,
    old: ConditioningArray | None,
    read: Callable[[TrainConfig], Work[Dataset]],
) -> Work[Pairs | None]:
    """Read the paired samples of --given, with the size and the fit of the images.

    Images that may be label maps are read as such first.

    Args:
        old: the paired samples of the model that a run continues or distills, whose kind is kept.
        read: the function that reads samples.

    Raises:
        DataError: as in `match_training_pairs`.
        UsageError: --given-kind is `LABELS` for samples that are not images, or for a degradation.
    """
    source = find_pairs(config.given)
    kind = config.given_kind or AUTO
    if kind == LABELS and (source is None or images.medium != IMAGE):
        text = f"--given-kind {LABELS} is for a folder of images"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    if source is None:
        return None
    if old:
        kind = LABELS if old.labels else IMAGE
    elif images.medium != IMAGE:
        kind = IMAGE
    space = images.estimated_space
    given_config = replace(
        config,
        data=source,
        size=space.size,
        channels=None,
        medium=images.medium,
        bits=8 * images.stored.dtype.itemsize if MEDIA[images.medium].bits else None,
        rate=space.rate,
        layout=PAIR_LAYOUTS.get(images.layout, images.layout),
    )
    if kind == LABELS or (kind == AUTO and label_maps.survey_labels(source)):
        label_config = replace(given_config, layout=LABELS, alpha=False, bits=None)
        maps = yield from read(label_config)
        if kind == LABELS or label_maps.are_labels(maps.label_counts, {*maps.summary.modes}):
            return (yield from match_training_pairs(config, images, maps))
    given = yield from read(given_config)
    return (yield from match_training_pairs(config, images, given))


def match_training_pairs(config: TrainConfig, images: Dataset, given: Dataset) -> Work[Pairs]:
    """Pair images with their conditioning images.

    Yields warnings of images without a pair, and of conditioning images with few levels.

    Raises:
        DataError: no image has a pair, or, with --strict, an image has none.
        UsageError: the conditioning images are of another type or size.
    """
    option = f"--given {files.show(str(config.given))}"
    space, given_space = images.estimated_space, given.estimated_space
    longest = max(max(size) for data in (images, given) for size in data.summary.sizes)
    if space.rate is not None and longest > space.size[0]:
        text = f"{option}: of sounds longer than --size, the parts of a pair may differ"
        hint = f"Pass --size {longest} or cut the files"
        raise UsageError(text, hint, code="data_mismatch", path=config.given)
    kinds = [(s.medium, s.levels, s.size) for s in (space, given_space)]
    if given.layout == LABELS:
        kinds[1] = (given_space.medium, space.levels, given_space.size)
    if kinds[0] != kinds[1]:
        text = f"{option}: the samples differ from DATA in medium, depth or size"
        hint = "Convert them to the same kind"
        raise UsageError(text, hint, code="data_mismatch", path=config.given)
    pairs = match_pairs(images, given)
    for line in pairs.describe_unpaired():
        if config.strict:
            hint = "Remove --strict to train on the pairs only"
            raise DataError(line, hint, code="data_mismatch", path=config.given)
        yield Notice(line, warning=True)
    if given.layout == LABELS:
        count = np.count_nonzero(given.label_counts)
        yield Notice(f"{option}: label maps of {count} labels")
        return pairs
    stored = pairs[samples.select_evenly(np.flatnonzero(pairs.matched), samples.FEW)]
    if ends := samples.limit_levels(given_space, stored).level_range:
        low, high = int(stored.min()), int(stored.max())
        if high - low < NARROW * (ends[1] - ends[0]):
            yield Notice(
                f"{option}: the images use only levels {low:,} to {high:,} of {ends[0]:,} to "
                f"{ends[1]:,}, which the model can hardly tell apart. Scale them to the whole "
                "range, or for label maps pass --given-kind labels",
                warning=True,
            )
    return pairs


def describe_conditioning(
    config: TrainConfig, space: Space, pairs: Pairs | None, trained: Indices
) -> ConditioningArray | None:
    """Describe the conditioning images of a configuration, or return None without them.

    Args:
        trained: the indices of the training samples. Their pairs give the mean and the standard
            deviation that standardize floats.

    Raises:
        UsageError: the degradation is unknown or does not suit the images.
        DataError: --transform is undefined for values of the paired samples.
    """
    if config.given is None:
        return None
    scale: dict[str, tuple[Any, ...] | None] = {}
    channels = pairs.given.estimated_space.channels if pairs else space.channels
    if pairs and pairs.given.layout == LABELS:
        scale = _describe_labels(config, pairs.given)
        channels = len(scale["labels"] or ())
    elif pairs and space.levels is None:
        dataset = pairs.given
        given_space = replace(dataset.estimated_space, transform=space.transform)
        mean, std = samples.moments(given_space, dataset.stored, pairs.rows[trained], dataset.names)
        # A constant channel has no information, and does no harm.
        varies = std > samples.NOISE * np.abs(mean)
        scale = {"mean": tuple(mean.tolist()), "std": tuple(np.where(varies, std, 1.0).tolist())}
    elif pairs:
        scale = {
            "limits": samples.limit_levels(pairs.given.estimated_space, pairs.given.stored).limits
        }
    given = ConditioningArray(
        channels=channels,
        what=PAIRS if pairs else config.given,
        dropout=GIVEN_DROPOUT if config.given_dropout is None else config.given_dropout,
        noise=config.given_noise or 0.0,
        **scale,
    )
    return Conditioner(given, space).given


def _describe_labels(config: TrainConfig, maps: Dataset) -> dict[str, tuple[Any, ...] | None]:
    """Return the labels, names and fractions of label maps, fields of `ConditioningArray`.

    Raises:
        DataError: the maps have only one label, or more than a model can have.
    """
    counts, path = maps.label_counts, str(config.given)
    labels = tuple(np.flatnonzero(counts).tolist())
    if not 2 <= len(labels) <= MOST_CHANNELS:
        text = f"--given {files.show(path)}: label maps have 2 to {MOST_CHANNELS} labels, not "
        hint = "Save them without loss, for example as PNG, or pass --given-kind image"
        raise DataError(f"{text}{len(labels)}", hint, code="option_unsuited", path=path)
    names = label_maps.read_label_names(path)
    return {
        "labels": labels,
        "names": tuple(names.get(k, str(k)) for k in labels) if names else None,
        "fractions": tuple((counts[counts > 0] / counts.sum()).tolist()),
    }
