"""Data of a training run: samples, paired samples and metadata."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import ConditioningArray, MetadataTable, Space
from diffuse_cli.core.settings import to_dict
from diffuse_cli.data import Dataset, Pairs, held_out_rule, open_index, read_images, save_index
from diffuse_cli.media import MEDIA, Indices, resolve_layout, stored_dtype
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import (
    DataError,
    Notice,
    OutputError,
    UsageError,
    Work,
    files,
    translate_errors,
)
from diffuse_cli.system.memory import free_memory
from diffuse_cli.system.run_reader import MEMORY
from diffuse_cli.training import training_conditions
from diffuse_cli.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from accelerate import Accelerator


FEW = 2
"""The fewest images from which a model can do more than memorize."""

HANDFUL = 100
"""The number of images that a person can look through."""

PAIR_LAYOUTS: Mapping[str | None, str | None] = {"L": None, "HW": None, "DHW": "CDHW"}
"""Layouts of pairs of samples whose layout has no channels, which the pairs may have. Other pairs
have the layout of the samples."""

MAPPED_SHARE = 4
"""Images larger than 1/MAPPED_SHARE of the free memory are mapped from a file."""

DISK_SHARE = 2
"""Images larger than 1/DISK_SHARE of the free disk are decoded on demand."""


@dataclass(frozen=True)
class TrainingData:
    """Samples, split into training samples and held-out samples.

    Attributes:
        images: all samples.
        train, held_out: the indices of each part, without samples that lack a pair.
        pairs: the paired samples, for a model that is conditioned on them.
        table: the metadata columns that a model is conditioned on.
    """

    images: Dataset
    train: Indices
    held_out: Indices
    pairs: Pairs | None = None
    table: MetadataTable | None = None

    @property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Fingerprints of the pairs and the metadata, if any, as model files keep them."""
        images, pairs = self.images, self.pairs
        return {
            **({"given": {"fingerprint": pairs.fingerprint}} if pairs else {}),
            **({"table": {"fingerprint": images.rows_fingerprint}} if self.table else {}),
        }

    def state(self, classes: bool) -> dict[str, Any]:
        """Return the values by which a checkpoint recognizes the data.

        Args:
            classes: whether the model is conditioned on classes.
        """
        state: dict[str, Any] = {
            "fingerprint": self.images.fingerprint,
            "classes": self.images.class_fingerprints if classes else {},
            "given": {},
            **self.fingerprints,
        }
        if self.table:
            state["table"] = {"told": to_dict(self.table), **state["table"]}
        return state

    def describe(self, config: TrainConfig) -> dict[str, Any]:
        """Return the values that a model file keeps, without names of files and folders."""
        origin = self.images.summary.origin
        return {
            "fingerprint": self.images.fingerprint,
            "images": len(self.images),
            "held_out": {**held_out_rule(), "images": len(self.held_out)},
            "background": config.background,
            "fit": config.fit,
            **({"origin": origin} if origin else {}),
            **self.fingerprints,
        }


def read_data(
    config: TrainConfig, accelerator: Accelerator, run: RunDirectory | None
) -> Work[TrainingData]:
    """Read the samples, their pairs and their metadata.

    If several processes share a run, one process on each machine reads, and the others map its
    result.

    Raises:
        DataError: there are no usable images, or none to train on.
        UsageError: the classes differ from a resumed run's.
    """
    several = accelerator if run and accelerator.num_processes > 1 else None
    if run and config.overwrite and accelerator.is_main_process and run.exists():
        files.remove(run.index)
    images = yield from _read_samples(config, several, run)
    pairs = yield from _read_pairs(config, images, several, run)
    if config.classes and config.resumes:
        training_conditions.check_names(config, images)
    indices = np.arange(len(images)) if pairs is None else np.flatnonzero(pairs.matched)
    held_out = images.held_out[indices]
    train = indices[~held_out]
    if len(train) == 0:
        text = f"all {MEDIA[images.medium].many} with a conditioning image are held out"
        raise DataError(text, "Add more pairs")
    images, table = yield from training_conditions.read_metadata(config, images, train)
    yield from _describe_samples(config, images, train)
    return TrainingData(images, train, indices[held_out], pairs, table)


def _describe_samples(config: TrainConfig, images: Dataset, train: Indices) -> Iterator[Notice]:
    """Report the samples, classes that a new run does not use, exact copies, and few samples."""
    summary, source = images.summary, shlex.quote(config.data)
    yield from (Notice(line) for line in summary.lines())
    count = len(summary.classes)
    if count > 1 and not (config.classes or config.resumes or config.distills):
        yield Notice(f"{count:,} classes: use --classes to choose one when you sample")
    if copies := np.count_nonzero(images.first_copies != np.arange(len(images))):
        look = "" if config.data.startswith(MEMORY) else f". List them with: diffuse info {source}"
        verb = "is a copy of another" if copies == 1 else "are copies of others"
        yield Notice(f"{copies:,} of {summary.format_samples(len(images))} {verb}{look}")
    if len(train) < FEW:
        medium = MEDIA[images.medium]
        yield Notice(
            f"only 1 {medium.one} to train on: all samples will be copies of it. Add more "
            f"{medium.many}",
            warning=True,
        )
    yield from _warn_of_mixed_sizes(config, images)


def _warn_of_mixed_sizes(config: TrainConfig, images: Dataset) -> Iterator[Notice]:
    """Warn of a few images of many sizes, which may not belong together."""
    count, sizes = len(images), len(images.summary.sizes)
    if FEW < count < HANDFUL and sizes > 2 and sizes * 2 >= count:
        line = shlex.join(["diffuse", "info", config.data, "-o", "sheet.png"])
        look = "" if config.data.startswith(MEMORY) else f". Look at them with: {line}"
        yield Notice(
            f"only {images.summary.format_samples(count)} of {sizes:,} sizes in "
            f"{files.show(config.data)}: if they show different things, samples will be copies and "
            f"mixtures of them{look}",
            warning=True,
        )


# Weights have learned a scale of their samples, so it stays if samples are added or exchanged.

FAR = 4.0
"""Factor between two standard deviations from which on a warning says so."""


def find_earlier(config: TrainConfig) -> tuple[Blueprint | None, bool]:
    """Return the blueprint of the model that a run continues or starts from, if any.

    The second value is whether the run continues it.

    Raises:
        ModelFileError: the file of --init is not a model file.
    """
    base = RunDirectory(config.out).blueprint() if config.resumes else None
    if base or not config.init:
        return base, base is not None
    return model_file.load(config.init, weights=False).blueprint, False


def keep_scale(space: Space, base: Blueprint | None, continued: bool) -> Work[Space]:
    """Return the space of samples with the scale of an earlier model of the same kind.

    Levels keep their limits in a run that is continued. With --init, they have those of the data.
    """
    if base is None or _kind_of(space) != _kind_of(base.space):
        return space
    old = base.space
    ratios = [after / before for after, before in zip(space.std, old.std, strict=True)]
    factor = max(ratios, key=lambda ratio: abs(math.log(ratio)), default=1.0)
    if not 1 / FAR < factor < FAR:
        yield Notice(
            f"the values have {factor:.3g} times the standard deviation of the model's data, whose "
            "scale is kept",
            warning=True,
        )
    span, bounds = space.level_range, old.level_range
    if continued and span and bounds and (span[0] < bounds[0] or span[1] > bounds[1]):
        text = "samples have levels outside of the run's {:,} to {:,}, whose scale is kept"
        yield Notice(text.format(*bounds), warning=True)
    limits = old.limits if continued else space.limits
    return replace(space, mean=old.mean, std=old.std, limits=limits)


def keep_given_scale(
    given: ConditioningArray | None, space: Space, base: Blueprint | None, continued: bool
) -> ConditioningArray | None:
    """Return conditioning images with the scale of an earlier model, like `keep_scale`."""
    old = base.conditions.given if base and _kind_of(space) == _kind_of(base.space) else None
    if given is None or old is None or (given.what, given.channels) != (old.what, old.channels):
        return given
    limits = old.limits if continued else given.limits
    return replace(given, mean=old.mean, std=old.std, limits=limits)


def _kind_of(space: Space) -> tuple[Any, ...]:
    return space.medium, space.levels, space.channels, space.transform


def _read_pairs(
    config: TrainConfig, images: Dataset, several: Accelerator | None, run: RunDirectory | None
) -> Work[Pairs | None]:
    """Read the paired samples of --given, with the size and the fit of the images."""
    source = training_conditions.find_pairs(config)
    if source is None:
        return None
    kind, space = MEDIA[images.medium], images.estimated_space
    bits = 8 * images.stored.dtype.itemsize if kind.bits else None
    given_config = replace(
        config,
        data=source,
        size=space.size,
        channels=None,
        medium=images.medium,
        bits=bits,
        rate=space.rate,
        layout=PAIR_LAYOUTS.get(images.layout, images.layout),
    )
    given = yield from _read_samples(given_config, several, run, "given")
    return (yield from training_conditions.match_training_pairs(config, images, given))


def _read_samples(
    config: TrainConfig, several: Accelerator | None, run: RunDirectory | None, part: str = ""
) -> Work[Dataset]:
    """Read samples. A run that is continued keeps its numbers, for example 16 bits.

    Args:
        part: the name of their files in the run directory, empty for the images themselves.
    """
    cache = run.cache / part if run else None
    index = run.index / f"{part or 'images'}.jsonl" if run else None
    if several and cache and not several.is_local_main_process:
        several.wait_for_everyone()
        with _print_everywhere():
            images = open_index(cache)
        several.wait_for_everyone()
        return images
    base = RunDirectory(config.out).blueprint() if config.resumes and not part else None
    # Several processes map a file, so that they share its memory.
    held = 0 if several else max(0, free_memory("cpu")) // MAPPED_SHARE
    with translate_errors():
        layout = resolve_layout(config.layout, config.alpha)
    with _print_everywhere() if several else contextlib.nullcontext():
        images = yield from read_images(
            config.data,
            size=config.size,
            channels=config.channels,
            background=config.background,
            fit=config.fit,
            medium=config.medium,
            layout=layout,
            numbers=stored_dtype(base.space) if base else None,
            bits=config.bits,
            rate=config.rate,
            transform=config.transform,
            strict=config.strict,
            workers=config.workers,
            cache=cache,
            map_over=held,
            keep=_choose_kept_bytes(config, cache, held),
            index=index if several is None or several.is_main_process else None,
            goes_on=config.resumes,
        )
        if several and cache:
            save_index(images, cache)
    if several and cache:
        several.wait_for_everyone()
        several.wait_for_everyone()
    return images


@contextlib.contextmanager
def _print_everywhere() -> Iterator[None]:
    """Let this process print its errors in reading, which the first process may not have.

    Each machine reads its own files.
    """
    try:
        yield
    except (DataError, OutputError, UsageError) as error:
        error.mark_local()
        raise


def _choose_kept_bytes(config: TrainConfig, cache: Path | None, held: int) -> int:
    """Return the bytes of decoded images to keep.

    It is --cache, or else `held` or a fraction of the free disk space of the run directory if more.

    Args:
        cache: the folder for them, or None for memory only, which keeps at most `held`.
        held: the most bytes to keep in memory.
    """
    if cache is None:
        return held if config.cache is None else min(config.cache, held)
    disk = files.free_space(cache) // DISK_SHARE
    return max(held, disk) if config.cache is None else config.cache


def check_fingerprint(
    config: TrainConfig, data: TrainingData, state: Mapping[str, Any]
) -> Work[None]:
    """Warn if the images have changed since the run started.

    Raises:
        DataError: the images differ, with --strict.
        UsageError: the images are the same, but their classes, pairs or metadata differ.
    """
    now = data.state(bool(config.classes))
    if state["fingerprint"] != now["fingerprint"]:
        text = f"the images in {config.data} have changed since this run started"
        if config.strict:
            raise DataError(text, "Remove --strict to resume with them")
        yield Notice(text, warning=True)
        return
    source = files.show(config.data)
    before, classes = state["classes"], now["classes"]
    moved = [name for name in before if classes.get(name, before[name]) != before[name]]
    if moved:
        raise UsageError(
            f"images in {source} have moved to other class folders since this run started: "
            f"{training_conditions.list_names(moved)} changed",
            "Move them back, or start another run with --init",
        )
    if now["given"] != state["given"]:
        raise UsageError(
            f"the conditioning images in {files.show(str(config.given))} have changed since this "
            "run started",
            "Restore the files and their names, or start another run with --init",
        )
    began = state.get("table", {})
    if {**began, **data.fingerprints.get("table", {})} != began:
        message = f"the metadata in {source} has changed since this run started"
        raise UsageError(message, "Restore it, or start another run with --init")
