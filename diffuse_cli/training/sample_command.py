"""The command that samples from a model that was trained."""

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
"""Samples of inputs that are not files, of which one could be named."""


def sample_line(plan: Plan, model: Path) -> str:
    """Return a command that runs as it is: with an input and values of the training data, for a
    model that is conditioned on them, and into a folder that is free. Empty if a program holds the
    data, or if its inputs are in a file that `sample` takes for one sample.
    """
    if MEMORY in (plan.config.data[: len(MEMORY)], (plan.config.given or "")[: len(MEMORY)]):
        return ""
    given = plan.blueprint.conditions.given
    source = plan.config.given if given and given.what == PAIRS else plan.config.data
    if given and not is_images(Path(source or ""), single=True):
        return ""
    return shlex.join(["diffuse", "sample", str(model), *_told(plan), *_out()])


def _told(plan: Plan) -> Iterator[str]:
    """The options of what a model is conditioned on."""
    conditions = plan.blueprint.conditions
    for column in conditions.table.columns if conditions.table else ():
        name, value = example(column)
        yield from ("--on", f"{name}={value}")
    if conditions.given is None:
        return
    unseen = int([*plan.data.held_out, *plan.data.train][0])
    if conditions.given.what == PAIRS:
        assert plan.data.pairs is not None
        assert plan.config.given is not None
        yield from _input(
            plan.config.given, plan.data.pairs.given, int(plan.data.pairs.rows[unseen])
        )
    else:
        yield from _input(plan.config.data, plan.data.images, unseen)
        yield "--degrade"


def _input(source: str, samples: Dataset, index: int) -> Iterator[str]:
    """The file of a sample, or else the first of its source."""
    file = Path(source) / samples.names[index]
    if file.is_file():
        yield from ("--given", str(file))
    else:
        yield from ("--given", source, "--range", f"0:{INPUTS}")


def _out() -> Iterator[str]:
    """A folder for the samples, if others are where they are written by default."""
    name = SampleConfig.out
    if Path(name).exists():
        free = (f"{name}-{k}" for k in itertools.count(2))
        yield from ("-o", next(other for other in free if not Path(other).exists()))
