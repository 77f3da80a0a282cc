"""The columns that a model is told: read beside its images, and kept as a run began with them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config.task_options import is_degradation
from diffuse_cli.config.train_options import GIVEN_DROPOUT, TrainConfig
from diffuse_cli.core.conditions import PAIRS, Given, MetadataTable, Numbers
from diffuse_cli.core.degradations import DEGRADATIONS
from diffuse_cli.core.settings import to_dict
from diffuse_cli.core.space import Space
from diffuse_cli.data import Dataset, Pairs, is_images, pair, read_cells
from diffuse_cli.data.metadata_columns import described, names_of, rows_of, table_of, unknown
from diffuse_cli.data.samples import NOISE, limited, moments
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Giver
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, UsageError, suggest
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training.run_directory import RunDirectory


def told_by_table(
    config: TrainConfig, images: Dataset, train: npt.NDArray[np.int64]
) -> Work[tuple[Dataset, MetadataTable | None]]:
    """The images with their codes of the columns of --condition-on, and what these columns are.

    They are those that a run began with; else numbers keep the scale that the model of --init
    knows, and all else is of the images.

    Args:
        train: indices of the images that are trained on.

    Raises:
        DataError: no table, or one that cannot be used; with --strict, an image without a row.
        UsageError: no such column.
    """
    if not config.condition_on:
        return images, None
    cells = read_cells(config.data, images.names, names_of(config.condition_on))
    for line in cells.lines:
        if config.strict:
            raise DataError(line, "Leave --strict out to train with them")
        yield Notice(line, warning=True)
    began = RunDirectory(config.out).conditions() if config.goes_on else None
    table = began.table if began else None
    if table is None:
        table = table_of(config.condition_on, cells, train)
        if config.init:
            table = _scaled(table, model_file.load(config.init).blueprint.conditions.table)
    if not fits(to_dict(table)):
        raise DataError(
            "--condition-on: the labels do not fit into a model file", "Choose other columns"
        )
    for line in unknown(table, cells):
        yield Notice(line, warning=True)
    for column in table.columns:
        yield Notice(f"told {files.brief(column.name)}: {described(column)}")
    return replace(images, rows=rows_of(table, cells)), table


def _scaled(table: MetadataTable, known: MetadataTable | None) -> MetadataTable:
    """The table with numbers on the scale of a model that knows them already."""
    columns = []
    for column in table.columns:
        old = known.names.get(column.name) if known else None
        if isinstance(column, Numbers) and isinstance(old, Numbers):
            column = replace(column, mean=old.mean, deviation=old.deviation)
        columns.append(column)
    return MetadataTable(columns=tuple(columns))


# -- classes --------------------------------------------------------------------------------------

# The classes of the images, checked against those that a run or a model has learned.

NAMED = 5
"""Most classes that a message names."""

CLASSES_BYTES = 750_000
"""Room for the names of classes, as JSON, in the header of a model file."""


def class_names(images: Dataset) -> tuple[str, ...]:
    """The names of the classes.

    Raises:
        DataError: the images lie in fewer than two class folders, or in more than a model file has
            room for.
    """
    if len(images.class_names) < 2:
        raise DataError(
            "--classes: the images are not in class folders",
            "Put each class into a folder of its name, or leave --classes out",
        )
    if not fits(images.class_names):
        raise DataError(
            f"--classes: {len(images.class_names):,} class folders, whose names do not fit into a "
            "model file",
            "Leave --classes out",
        )
    return images.class_names


def fits(names: object) -> bool:
    """Whether the header of a model file has room for names, as plain values."""
    return len(json.dumps(names)) <= CLASSES_BYTES


def check_names(config: TrainConfig, images: Dataset) -> None:
    """Refuse classes whose names are not those of a run.

    Raises:
        UsageError: they are not.
    """
    began, now = RunDirectory(config.out).conditions(), set(images.class_names)
    if began is None or (before := set(began.classes)) == now:
        return
    changes = {"gone": before - now, "new": now - before}
    told = "; ".join(f"{what} {named(names)}" for what, names in changes.items() if names)
    raise UsageError(
        f"the class folders in {files.show(config.data)} are not those that this run began with: "
        f"{told}",
        "Give them their names back, or begin another run with --init, which takes what was "
        "learned of a class by its name",
    )


def named(names: Iterable[str]) -> str:
    """Names of classes in a sentence, at most `NAMED` of them."""
    listed = sorted(map(files.show, names))
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


# -- given ----------------------------------------------------------------------------------------

# What a model is given beside its images: which pairs or degradation, and whether it stays.


def pairs_at(config: TrainConfig) -> str | None:
    """The folder or zip file of --given; None where nothing or a degradation is given.

    Raises:
        DataError: neither there nor a degradation.
    """
    if config.given is None or is_degradation(config.given):
        return None
    if not (is_images(path := Path(config.given)) or path.exists()):
        raise DataError(
            f"--given {files.show(config.given)}: no such file or folder, and no degradation",
            suggest(config.given.partition(":")[0], DEGRADATIONS),
        )
    return config.given


def paired(config: TrainConfig, images: Dataset, given: Dataset) -> Work[Pairs]:
    """The images with what was read beside them; says what has no pair.

    Raises:
        DataError: nothing has a pair, or, with --strict, something has none.
        UsageError: a pair of another kind of numbers.
    """
    own, theirs = images.unmeasured, given.unmeasured
    if (own.medium, own.levels, own.size) != (theirs.medium, theirs.levels, theirs.size):
        raise UsageError(f"--given {files.show(str(config.given))}: not samples as those of DATA")
    found = pair(images, given)
    for line in found.missing():
        if config.strict:
            raise DataError(line, "Leave --strict out to train on the pairs alone")
        yield Notice(line, warning=True)
    return found


def given_of(
    config: TrainConfig, space: Space, pairs: Pairs | None, trained: npt.NDArray[np.int64]
) -> Given | None:
    """What the model of a configuration is given.

    Args:
        trained: the samples that are trained on; what lies beside them has the mean and deviation
            that floats are standardised by.

    Raises:
        UsageError: a degradation that there is not, or that does not suit the images.
        DataError: numbers beside them that --transform is not defined for.
    """
    if config.given is None:
        return None
    scale: dict[str, tuple[Any, ...] | None] = {}
    if pairs and space.levels is None:
        theirs = pairs.given
        own = replace(theirs.unmeasured, transform=space.transform)
        mean, std = moments(own, theirs.stored, pairs.rows[trained], theirs.names)
        # A channel that never varies says nothing, and does no harm.
        varies = std > NOISE * np.abs(mean)
        scale = {"mean": tuple(mean.tolist()), "std": tuple(np.where(varies, std, 1.0).tolist())}
    elif pairs:
        scale = {"limits": limited(pairs.given.unmeasured, pairs.given.stored).limits}
    given = Given(
        channels=pairs.given.unmeasured.channels if pairs else space.channels,
        what=PAIRS if pairs else config.given,
        dropout=GIVEN_DROPOUT if config.given_dropout is None else config.given_dropout,
        noise=config.given_noise or 0.0,
        **scale,
    )
    return Giver(given, space).given
