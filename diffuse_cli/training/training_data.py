"""Data of a training run: samples, paired samples and metadata."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import MetadataTable
from diffuse_cli.data import Dataset, Pairs, held_out_rule, open_index, read_images, save_index
from diffuse_cli.data.stream import Stream, find_stream, replace_unreadable
from diffuse_cli.media import MEDIA, Array, Indices, resolve_layout
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

FEW = 2
"""The fewest images from which a model can do more than memorize."""

HANDFUL = 100
"""The number of images that a person can look through."""

MAPPED_SHARE = 4
"""Images larger than 1/MAPPED_SHARE of the free memory are mapped from a file."""

DISK_SHARE = 2
"""Images larger than 1/DISK_SHARE of the free disk are decoded on demand."""


class LoadedImages(NamedTuple):
    """Indices of images that can be read, and the samples of each stream by row."""

    indices: Indices
    samples: list[dict[int, npt.NDArray[Any]]]


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
            state["table"] = {"told": self.table.to_dict(), **state["table"]}
        return state

    def describe(self, background: str, fit: str) -> dict[str, Any]:
        """Return the values that a model file keeps, without names of files and folders."""
        origin = self.images.summary.origin
        return {
            "fingerprint": self.images.fingerprint,
            "images": len(self.images),
            "held_out": {**held_out_rule(), "images": len(self.held_out)},
            "background": background,
            "fit": fit,
            **({"origin": origin} if origin else {}),
            **self.fingerprints,
        }

    @property
    def streams(self) -> list[tuple[Stream, Indices | None]]:
        """Streams of samples, each with the row of every image. None for the images' own rows."""
        stream, pairs = find_stream(self.images.stored), self.pairs
        streams: list[tuple[Stream, Indices | None]] = [(stream, None)] if stream else []
        if pairs and (beside := find_stream(pairs.given.stored)):
            streams.append((beside, pairs.rows))
        return streams

    def close(self) -> None:
        """Stop the streams' workers."""
        for stream, _ in self.streams:
            stream.close()

    def read(self, indices: Indices) -> Array:
        """Read stored samples (N, C, *size): each, or its successor if it cannot be read."""
        return np.ascontiguousarray(self.images.stored[self.find_readable(indices)])

    def find_readable(self, indices: Indices) -> Indices:
        """Return indices of images that can be read now: each image, or its successor."""
        if not self.streams:
            return indices
        loaded = self.load(indices)
        for (stream, _), samples in zip(self.streams, loaded.samples, strict=True):
            stream.remember(samples)
        return loaded.indices

    def load(self, indices: Indices) -> LoadedImages:
        """Read images and their pairs, and replace each unreadable image by the next readable one.

        The next image comes from the same part: the training images or the held-out images.

        Raises:
            DataError: no image can be read.
        """
        streams = self.streams
        every: list[dict[int, npt.NDArray[Any]]] = [{} for _ in streams]
        faulty = streams[0][0]

        def read(candidates: Indices) -> npt.NDArray[np.bool_]:
            """Read samples from all streams, and return which are whole."""
            nonlocal faulty
            whole = np.ones(len(candidates), np.bool_)
            for (stream, rows), samples in zip(streams, every, strict=True):
                places = candidates if rows is None else rows[candidates]
                samples |= stream.fetch(row for row in places.tolist() if row not in samples)
                readable = np.array([row in samples for row in places.tolist()], np.bool_)
                faulty = faulty if readable.all() else stream
                whole &= readable
            return whole

        chosen = replace_unreadable(indices, (self.train, self.held_out), read)
        if chosen is None:
            raise faulty.unreadable_error()
        return LoadedImages(chosen, every)

    def check_fingerprint(self, config: TrainConfig, state: Mapping[str, Any]) -> Work[None]:
        """Warn if the images have changed since the run started that a checkpoint's state is of.

        Raises:
            DataError: the images differ, with --strict.
            UsageError: the images are the same, but their classes, pairs or metadata differ.
        """
        now = self.state(bool(config.classes))
        if state["fingerprint"] != now["fingerprint"]:
            text = f"the images in {config.data} have changed since this run started"
            if config.strict:
                hint = "Remove --strict to resume with them"
                raise DataError(text, hint, code="run_differs", path=config.data)
            yield Notice(text, warning=True)
            return
        source = files.show(config.data)
        before, classes = state["classes"], now["classes"]
        moved = [name for name in before if classes.get(name, before[name]) != before[name]]
        began, change, fix, path = state.get("table", {}), "", "Restore it", config.data
        if moved:
            change = f"images in {source} have moved to other class folders"
            fix = "Move them back"
        elif now["given"] != state["given"]:
            change = f"the conditioning images in {files.show(str(config.given))} have changed"
            fix, path = "Restore the files and their names", str(config.given)
        elif {**began, **self.fingerprints.get("table", {})} != began:
            change = f"the metadata in {source} has changed"
        if change:
            ending = f": {training_conditions.list_names(moved)} changed" if moved else ""
            text = f"{change} since this run started{ending}"
            hint = f"{fix}, or start another run with --init"
            raise UsageError(text, hint, code="run_differs", path=path)


def read_data(
    config: TrainConfig,
    accelerator: Accelerator,
    run: RunDirectory | None,
    base: Blueprint | None,
    continued: bool,
) -> Work[TrainingData]:
    """Read the samples, their pairs and their metadata.

    If several processes share a run, one process on each machine reads, and the others map its
    result.

    Args:
        base: the model that the run continues or starts from, if any.
        continued: whether the run continues it.

    Raises:
        DataError: there are no usable images, or none to train on.
        UsageError: the classes differ from a resumed run's.
    """
    several = accelerator if run and accelerator.num_processes > 1 else None
    if run and config.overwrite and accelerator.is_main_process and run.exists():
        files.remove(run.index)
    numbers = base.space.stored_dtype if base and continued else None
    images = yield from _read_samples(config, several, run, numbers=numbers)
    pairs = yield from training_conditions.read_training_pairs(
        config,
        images,
        base.conditions.given if base and (continued or config.distills) else None,
        lambda given_config: _read_samples(given_config, several, run, "given"),
    )
    if config.classes and base and continued:
        training_conditions.check_names(base.conditions, images, config.data)
    indices = np.arange(len(images)) if pairs is None else np.flatnonzero(pairs.matched)
    held_out = images.held_out[indices]
    train = indices[~held_out]
    if len(train) == 0:
        text = f"all {MEDIA[images.medium].many} with a conditioning image are held out"
        raise DataError(text, "Add more pairs", code="too_few_samples", path=config.given)
    table = None
    if config.condition_on:
        table = base.conditions.table if base else None
        images, table = yield from training_conditions.read_metadata(
            config, images, train, table, continued
        )
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


def _read_samples(
    config: TrainConfig,
    several: Accelerator | None,
    run: RunDirectory | None,
    part: str = "",
    numbers: str | None = None,
) -> Work[Dataset]:
    """Read samples.

    Args:
        part: the name of their files in the run directory, empty for the images themselves.
        numbers: the type of the numbers that a continued run keeps, for example 16 bits.
    """
    cache = run.cache / part if run else None
    index = run.index / f"{part or 'images'}.jsonl" if run else None
    # Several processes map a file, so that they share its memory.
    held = 0 if several else max(0, free_memory("cpu")) // MAPPED_SHARE
    with translate_errors():
        layout = resolve_layout(config.layout, config.alpha)
    with _take_turns(several) if several else contextlib.nullcontext():
        if several and cache and not several.is_local_main_process:
            return open_index(cache)
        images = yield from read_images(
            config.data,
            size=config.size,
            channels=config.channels,
            background=config.background,
            fit=config.fit,
            medium=config.medium,
            layout=layout,
            numbers=numbers,
            bits=config.bits,
            rate=config.rate,
            transform=config.transform,
            strict=config.strict,
            workers=config.workers,
            cache=cache,
            map_over=held,
            keep=choose_kept_bytes(config, cache, held),
            index=index if several is None or several.is_main_process else None,
            goes_on=config.resumes,
        )
        if several and cache:
            save_index(images, cache)
    return images


@contextlib.contextmanager
def _take_turns(several: Accelerator) -> Iterator[None]:
    """Let the first process of each machine read its files before the others.

    Each process prints its errors in reading, which the first process may not have.
    """
    with several.local_main_process_first():
        try:
            yield
        except (DataError, OutputError, UsageError) as error:
            error.mark_local()
            raise


def choose_kept_bytes(config: TrainConfig, cache: Path | None, held: int) -> int:
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
