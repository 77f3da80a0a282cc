"""Suggest a command that samples from the trained model."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core.conditions import PAIRS
from diffuse_cli.data import Dataset, is_images
from diffuse_cli.data.metadata_columns import example
from diffuse_cli.system.run_reader import MEMORY
from diffuse_cli.training.plan import Plan

INPUTS = 16
"""The number of conditioning inputs to select from a source without single files."""


def sample_line(plan: Plan, model: Path) -> str:
    """Return a command that runs as it is, into a folder that does not exist yet.

    A conditional model gets an input and values from the training data. The result is empty if the
    data is in a program's memory, or if `sample` would read the file of inputs as a single sample.
    """
    if MEMORY in (plan.config.data[: len(MEMORY)], (plan.config.given or "")[: len(MEMORY)]):
        return ""
    given = plan.blueprint.conditions.given
    source = plan.config.given if given and given.what == PAIRS else plan.config.data
    if given and not is_images(Path(source or ""), single=True):
        return ""
    options = [*_list_condition_options(plan), *_list_output_options()]
    return shlex.join(["diffuse", "sample", str(model), *options])


def _list_condition_options(plan: Plan) -> Iterator[str]:
    """Yield the options that set a model's conditions."""
    conditions = plan.blueprint.conditions
    for column in conditions.table.columns if conditions.table else ():
        name, value = example(column)
        yield from ("--on", f"{name}={value}")
    if conditions.given is None:
        return
    unseen = int([*plan.data.held_out, *plan.data.train][0])
    if conditions.given.what == PAIRS:
        pairs, source = plan.data.pairs, plan.config.given
        assert pairs is not None
        assert source is not None
        yield from _list_input_options(source, pairs.given, int(pairs.rows[unseen]))
    else:
        yield from _list_input_options(plan.config.data, plan.data.images, unseen)
        yield "--degrade"


def _list_input_options(source: str, samples: Dataset, index: int) -> Iterator[str]:
    """Yield the option for a sample's file, or else for the first samples of its source."""
    file = Path(source) / samples.names[index]
    if file.is_file():
        yield from ("--given", str(file))
    else:
        yield from ("--given", source, "--range", f"0:{INPUTS}")


def _list_output_options() -> Iterator[str]:
    """Yield the option for an output folder if the default folder exists already."""
    name = SampleConfig.out
    if Path(name).exists():
        free = (f"{name}-{k}" for k in itertools.count(2))
        yield from ("-o", next(other for other in free if not Path(other).exists()))
