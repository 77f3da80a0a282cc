"""The data of a training run: samples, what lies beside them, and what a table says of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.conditions import MetadataTable
from diffuse_cli.core.settings import to_dict
from diffuse_cli.data import Dataset, Pairs, held_out_rule, open_index, read_images, save_index
from diffuse_cli.media import MEDIA, asked_for
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, UsageError, translating
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training import training_conditions
from diffuse_cli.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from accelerate import Accelerator


MAPPED_SHARE = 4
"""Pixels over 1/MAPPED_SHARE of the memory are mapped from a file."""

DISK_SHARE = 2
"""Pixels over 1/DISK_SHARE of the free disk are decoded as they are used."""


@dataclass(frozen=True)
class TrainingData:
    """Samples that are split into those trained on and those held out.

    Attributes:
        images: all samples.
        train, held_out: indices into the images, of those with a pair.
        pairs: the samples beside them, for a model that is conditioned on them.
        table: the metadata columns that a model is conditioned on.
    """

    images: Dataset
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    pairs: Pairs | None = None
    table: MetadataTable | None = None

    @property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """The fingerprints of pairs and rows, of those that there are, as model files keep them."""
        images, pairs = self.images, self.pairs
        return {
            **({"given": {"fingerprint": pairs.fingerprint}} if pairs else {}),
            **({"table": {"fingerprint": images.rows_fingerprint}} if self.table else {}),
        }

    def state(self, classes: bool) -> dict[str, Any]:
        """The values by which a checkpoint knows the data again.

        Args:
            classes: whether a model learns the classes.
        """
        found: dict[str, Any] = {
            "fingerprint": self.images.fingerprint,
            "classes": self.images.class_fingerprints if classes else {},
            "given": {},
            **self.fingerprints,
        }
        if self.table:
            found["table"] = {"told": to_dict(self.table), **found["table"]}
        return found

    def described(self, config: TrainConfig) -> dict[str, Any]:
        """The values that a model file keeps, without names of files and folders."""
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
    """Read the samples, what lies beside them, and their table.

    Of several processes that share a run one on each machine reads, and the others map what it has
    read.

    Raises:
        DataError: no usable images.
        UsageError: classes other than those of a resumed run.
    """
    several = accelerator if run and accelerator.num_processes > 1 else None
    if run and config.overwrite and accelerator.is_main_process and run.exists():
        files.remove(run.index)
    images = yield from _read(config, several, run)
    pairs = yield from _read_pairs(config, images, several, run)
    if config.classes and config.goes_on:
        training_conditions.check_names(config, images)
    indices = np.arange(len(images)) if pairs is None else np.flatnonzero(pairs.matched)
    held_out = images.held_out[indices]
    train = indices[~held_out]
    images, table = yield from training_conditions.told_by_table(config, images, train)
    with translating(lambda _: "--transform"):
        images.space  # noqa: B018  numbers that a transform is not defined for are refused here
    return TrainingData(images, train, indices[held_out], pairs, table)


def _read_pairs(
    config: TrainConfig,
    images: Dataset,
    several: Accelerator | None,
    run: RunDirectory | None,
) -> Work[Pairs | None]:
    """What lies beside the images, if that is what is given: at their size, fitted as they are."""
    source = training_conditions.pairs_at(config)
    if source is None:
        return None
    kind, space = MEDIA[images.medium], images.unmeasured
    bits = 8 * images.stored.dtype.itemsize if kind.bits else None
    own = replace(
        config, data=source, size=space.size, channels=None, medium=images.medium, bits=bits
    )
    given = yield from _read(own, several, run, "given")
    return (yield from training_conditions.paired(config, images, given))


def _read(
    config: TrainConfig,
    several: Accelerator | None,
    run: RunDirectory | None,
    part: str = "",
) -> Work[Dataset]:
    """Read samples; `part` names their files in the run directory, if they are not the images."""
    cache = run.cache / part if run else None
    index = run.index / f"{part or 'images'}.jsonl" if run else None
    if several and cache and not several.is_local_main_process:
        several.wait_for_everyone()
        images = open_index(cache)
        several.wait_for_everyone()
        return images
    with translating():
        layout = asked_for(config.layout, config.alpha)
    images = yield from read_images(
        config.data,
        size=config.size,
        channels=config.channels,
        background=config.background,
        fit=config.fit,
        medium=config.medium,
        layout=layout,
        bits=config.bits,
        rate=config.rate,
        transform=config.transform,
        strict=config.strict,
        workers=config.workers,
        cache=cache,
        map_over=0 if several else memory() // MAPPED_SHARE,
        keep=_kept(config, cache),
        index=index if several is None or several.is_main_process else None,
        goes_on=config.goes_on,
    )
    if several and cache:
        save_index(images, cache)
        several.wait_for_everyone()
        several.wait_for_everyone()
    return images


def _kept(config: TrainConfig, cache: Path | None) -> int:
    """Bytes of decoded images that are kept: --cache, or a share of the memory, or of what is free
    on the disk of the run directory, whichever is more."""
    if config.cache is not None:
        return config.cache
    disk = files.free_space(cache) // DISK_SHARE if cache else 0
    return max(memory() // MAPPED_SHARE, disk)


def memory() -> int:
    """The memory of the machine in bytes; 8 GiB if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30


def check_fingerprint(
    config: TrainConfig, data: TrainingData, state: Mapping[str, Any]
) -> Work[None]:
    """Warn if the images are not those that a run began with.

    Raises:
        DataError: they differ, with --strict.
        UsageError: the same images, in other classes, with other pairs or other rows.
    """
    now = data.state(bool(config.classes))
    if state.get("fingerprint") not in (None, now["fingerprint"]):
        text = f"the images in {config.data} are not those that this run began with"
        if config.strict:
            raise DataError(text, "Leave out --strict to go on with them")
        yield Notice(text, warning=True)
        return
    source = files.show(config.data)
    # Early versions kept no fingerprint of a class.
    before = state.get("classes", {}).items()
    moved = [name for name, found in before if now["classes"].get(name, found) != found]
    if moved:
        raise UsageError(
            f"images in {source} lie in other class folders than when this run began: "
            f"{training_conditions.named(moved)} changed",
            "Put them back, or begin another run with --init",
        )
    if now["given"] != state.get("given", {}):
        raise UsageError(
            f"what lies beside the images in {files.show(str(config.given))} is not what this run "
            "began with",
            "Put it back, under its names, or begin another run with --init",
        )
    began = state.get("table", {})
    if {**began, **data.fingerprints.get("table", {})} != began:
        raise UsageError(
            f"the table in {source} does not say what it said of the images when this run began",
            "Put it back, or begin another run with --init",
        )
