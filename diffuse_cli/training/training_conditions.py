"""The columns that a model is told: read beside its images, and kept as a run began with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.conditions import Labels, Number, Table
from diffuse_cli.core.settings import to_dict
from diffuse_cli.data import Samples, read_cells
from diffuse_cli.data.metadata_columns import described, names_of, rows_of, table_of, unknown
from diffuse_cli.models import model_file
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training.classes import fits
from diffuse_cli.training.run_directory import RunDirectory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


def told_by_table(
    config: TrainConfig, images: Samples, train: npt.NDArray[np.int64]
) -> Work[tuple[Samples, Table | None]]:
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
    table = RunDirectory(config.out).table() if config.goes_on else None
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


def _scaled(table: Table, known: Table | None) -> Table:
    """The table with numbers on the scale of a model that knows them already."""
    columns = []
    for column in table.columns:
        old = known.names.get(column.name) if known else None
        if isinstance(column, Number) and isinstance(old, Number):
            column = replace(column, mean=old.mean, deviation=old.deviation)
        columns.append(column)
    return Table(columns=tuple(columns))


def with_columns(
    weights: Mapping[str, Tensor],
    embedding: str,
    own: Table | None,
    wanted: Table | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Mapping[str, Tensor]:
    """The weights of a model of the table `own` for the table `wanted`: columns by their names, and
    labels by theirs. A new column or label begins at 0, so that the model begins as it was.

    Args:
        embedding: `Ends.columns` of the network.
        shapes: of the tensors that are wanted.
    """
    import torch

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


def check_rows(config: TrainConfig, now: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse other rows than at a checkpoint.

    Raises:
        UsageError: their fingerprints differ.
    """
    if dict(now) != dict(expected):
        raise UsageError(
            f"the table in {files.show(config.data)} does not say what it said of the images when "
            "this run began",
            "Put it back, or begin another run with --init",
        )
