"""The classes of the images, checked against those that a run or a model has learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from diffuse_cli.config import TrainConfig
from diffuse_cli.data import Samples
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.training.run_directory import RunDirectory

NAMED = 5
"""Most classes that a message names."""

CLASSES_BYTES = 750_000
"""Room for the names of classes, as JSON, in the header of a model file."""


def class_names(images: Samples) -> tuple[str, ...]:
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


def check_names(config: TrainConfig, images: Samples) -> None:
    """Refuse classes whose names are not those of a run.

    Raises:
        UsageError: they are not.
    """
    before, now = RunDirectory(config.out).classes(), set(images.class_names)
    if before is None or before == now:
        return
    changes = {"gone": before - now, "new": now - before}
    told = "; ".join(f"{what} {named(names)}" for what, names in changes.items() if names)
    raise UsageError(
        f"the class folders in {files.show(config.data)} are not those that this run began with: "
        f"{told}",
        "Give them their names back, or begin another run with --init, which takes what was "
        "learned of a class by its name",
    )


def check_labels(config: TrainConfig, now: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Refuse images that lie in other class folders than at a checkpoint.

    Args:
        now, expected: the fingerprint of each class; empty if an early version kept none.

    Raises:
        UsageError: they do.
    """
    moved = [name for name, found in expected.items() if now.get(name, found) != found]
    if moved:
        raise UsageError(
            f"images in {files.show(config.data)} lie in other class folders than when this "
            f"run began: {named(moved)} changed",
            "Put them back, or begin another run with --init",
        )


def named(names: Iterable[str]) -> str:
    """Names of classes in a sentence, at most `NAMED` of them."""
    listed = sorted(map(files.show, names))
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more
