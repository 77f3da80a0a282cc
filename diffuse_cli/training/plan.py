"""What a training needs before its first step: images, complete configuration, first weights."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.gaussian_start import NAME as LOW_FREQUENCIES
from diffuse_cli.core.gaussian_start import LowFrequencies
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.settings import dimensions, to_dict
from diffuse_cli.core.targets import has_noise
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.data import Pairs, Samples, held_out_rule, open_index, read_images, save_index
from diffuse_cli.data.summary import fitting
from diffuse_cli.media import MEDIA, asked_for
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint, make_denoiser, make_process
from diffuse_cli.models.image_conditioning import Giver, Inputs, inputs_for
from diffuse_cli.system import files
from diffuse_cli.system.devices import settle, slow_precision
from diffuse_cli.system.errors import DataError, UsageError, translating
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.run_reader import MEMORY
from diffuse_cli.training.config_layers import default_loss
from diffuse_cli.training.configuration import complete, for_model_file
from diffuse_cli.training.ema_weights import Weak
from diffuse_cli.training.initial_weights import first_weights
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.teacher import Teacher, check_distilled
from diffuse_cli.training.training_conditions import (
    check_labels,
    check_names,
    check_pairs,
    check_rows,
    class_names,
    given_of,
    paired,
    pairs_at,
    told_by_table,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


FEW = 2
"""Fewest images from which a model can do more than memorise."""

HANDFUL = 100
"""Fewer images than this are looked at by hand."""

MAPPED_SHARE = 4
"""Pixels over 1/MAPPED_SHARE of the memory are mapped from a file."""

DISK_SHARE = 2
"""Pixels over 1/DISK_SHARE of the free disk are decoded as they are used."""


@dataclass(frozen=True)
class Plan:
    """A training that can begin.

    Attributes:
        config: complete.
        blueprint: what the model is.
        images: all of them.
        pairs: what lies beside them, for a model that is given it.
        train, held_out: indices into the images, those with a pair alone.
        init: the weights to start from, or None.
        room: most images at a time outside of training.
        versions: of the programs that made the run, each with its first step.
        teacher: the model that is distilled, if one is.
        low_frequencies: of what is trained on, once they are measured.
    """

    config: TrainConfig
    blueprint: Blueprint
    images: Samples
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    init: Mapping[str, Tensor] | None
    room: int = 64
    versions: tuple[Mapping[str, Any], ...] = ()
    pairs: Pairs | None = None
    teacher: Teacher | None = None
    low_frequencies: LowFrequencies | None = None

    @property
    def class_fingerprints(self) -> dict[str, str]:
        """What a checkpoint keeps of the labels; nothing without --classes."""
        return self.images.class_fingerprints if self.config.classes else {}

    @property
    def given_fingerprints(self) -> dict[str, str]:
        """What a checkpoint and a model file keep of pairs."""
        return {"fingerprint": self.pairs.fingerprint} if self.pairs else {}

    @property
    def table_fingerprints(self) -> dict[str, str]:
        """What a checkpoint and a model file keep of what the images' table says."""
        return {"fingerprint": self.images.rows_fingerprint} if self.images.rows is not None else {}

    @property
    def table_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the table; empty without one."""
        table = self.blueprint.conditions.table
        return {"told": to_dict(table), **self.table_fingerprints} if table else {}

    @cached_property
    def giver(self) -> Giver | None:
        """Makes what the model is told of what it is given, if it is given anything."""
        return Giver.of(self.blueprint)

    def chosen(self, parameters: int, processes: int, device: str) -> str:
        """The choices of a complete configuration, as one line."""
        config, size = self.config, self.images.space.size
        fitted = fitting(self.images.summary.sizes, size, config.fit, self.images.medium)
        shape = dimensions(size)
        preset = f", preset {config.preset}" if config.preset else ""
        many = MEDIA[config.medium or "image"].MANY
        shared = f" on {processes} processes" if processes > 1 else ""
        parts = f" in {config.accumulation} parts" if config.accumulation > 1 else ""
        return (
            f"training {config.network}{preset}, {parameters:,} parameters; {many} at {shape}"
            f"{fitted}; batch {config.batch_size}{parts}{shared}, learning rate {config.lr:.3g}, "
            f"{config.precision} on {device}; {config.steps:,} steps"
        )

    def data(self) -> dict[str, Any]:
        """What a model file says of its data, without the names of its files and folders."""
        return {
            "fingerprint": self.images.fingerprint,
            "images": len(self.images),
            "held_out": {**held_out_rule(), "images": len(self.held_out)},
            "background": self.config.background,
            "fit": self.config.fit,
            **({"origin": self.images.summary.origin} if self.images.summary.origin else {}),
            **({LOW_FREQUENCIES: self.low_frequencies.plain} if self.low_frequencies else {}),
            **({"given": self.given_fingerprints} if self.pairs else {}),
            **({"table": self.table_fingerprints} if self.images.rows is not None else {}),
        }


def prepare(
    config: TrainConfig, accelerator: Accelerator | None = None, run: RunDirectory | None = None
) -> Work[Plan]:
    """Read the images and complete the configuration.

    Of several processes one on each machine reads, and the others map what it has read.

    Raises:
        DataError: no usable images.
        UsageError: a network that does not suit them, a target undefined under the process or not
            for distilling, or classes other than those of a resumed run.
        ModelFileError, UsageError: as `first_weights`.
    """
    check_distilled(config, make_denoiser(None, config, make_process(config)))
    cache = run.cache if run else None
    index = run.index if run else None
    first = accelerator is None or accelerator.is_main_process
    if run and index and config.overwrite and first and run.exists():
        files.remove(index)
    images = yield from _read(config, accelerator, cache, index and index / "images.jsonl")
    beside = index and index / "given.jsonl"
    pairs = yield from _read_pairs(config, images, accelerator, cache, beside)
    if config.classes and config.goes_on:
        check_names(config, images)
    with translating(lambda _: "--transform"):
        space = images.space
    indices = np.arange(len(images)) if pairs is None else np.flatnonzero(pairs.matched)
    held_out = images.held_out[indices]
    images, table = yield from told_by_table(config, images, indices[~held_out])
    conditions = Conditions(
        classes=class_names(images) if config.classes else (),
        given=given_of(config, space, pairs, indices[~held_out]),
        table=table,
    )
    done, blueprint = complete(config, space, conditions)
    yield from (Notice(line) for line in images.summary.lines())
    if config.init and images.summary.greyed:
        yield Notice("grey as the model of --init is; --channels 3 goes on in colour")
    if done.flip and (how := getattr(MEDIA[images.medium], "FLIPPED", "")):
        yield Notice(f"--flip mirrors half of the {MEDIA[images.medium].MANY} {how}")
    if not config.goes_on:  # where it could still be changed
        for line in slow_precision(config.precision, config.device):
            yield Notice(line, warning=True)
        yield from too_narrow(config, blueprint)
    if int((~held_out).sum()) < FEW:
        yield Notice(
            f"1 {MEDIA[images.medium].ONE} to train on: the model can only memorise it; what it "
            "draws will be a copy",
            warning=True,
        )
    yield from _mixed(config, images)
    if done.variance in LEARNED and done.loss == "simple":
        yield Notice(
            "--loss simple trains no variance, which stays where it began; use "
            f"--loss {default_loss(done.variance)}",
            warning=True,
        )
    init = None if config.goes_on else (yield from first_weights(done, blueprint))
    return Plan(done, blueprint, images, indices[~held_out], indices[held_out], init, pairs=pairs)


def too_narrow(config: TrainConfig, blueprint: Blueprint) -> Iterator[Notice]:
    """Warn of a network that cannot predict noise in every dimension, with settings that can."""
    name = blueprint.network
    full_rank = getattr(NETWORKS[name], "full_rank", None)
    if full_rank is None or not has_noise(blueprint.diffusion.target):
        return
    own, able = to_dict(blueprint.config), to_dict(full_rank(blueprint.config, blueprint.space))
    changed = {key: value for key, value in able.items() if value != own.get(key)}
    ways = " and ".join(
        f"--width {value}"
        if (key, config.width) == ("width", own.get("width"))
        else f"[{name}] {key} = {value}{'' if config.init else ' in --config'}"
        for key, value in changed.items()
    )
    if ways:
        yield Notice(
            "the network is too narrow to remove all noise: samples will be covered in static. "
            f"{'Use a model trained with' if config.init else 'Set'} {ways}",
            warning=True,
        )


def _mixed(config: TrainConfig, images: Samples) -> Work[None]:
    """Warn of a handful of images of nearly as many sizes, as lie about among other things."""
    count, sizes = len(images), len(images.summary.sizes)
    if FEW < count < HANDFUL and sizes > 2 and sizes * 2 >= count:
        line = shlex.join(["diffuse", "info", config.data, "-o", "sheet.png"])
        look = "" if config.data.startswith(MEMORY) else f". Look at them: {line}"
        yield Notice(
            f"only {images.summary.counted(count)} of {sizes:,} sizes in "
            f"{files.show(config.data)}: if they are not of one kind, samples will be nothing but "
            f"copies and mixtures of them{look}",
            warning=True,
        )


def given_inputs(plan: Plan, chosen: npt.NDArray[np.int64]) -> Inputs | None:
    """What these images are given outside of training steps: the same every time."""
    if plan.giver is None:
        return None
    pairs = plan.pairs.beside(chosen) if plan.pairs else None
    return inputs_for(plan.giver, plan.images.stored[chosen], pairs, plan.config.seed)


def settled(plan: Plan, accelerator: Accelerator) -> Plan:
    """`plan` in the precision that its network decided, as is the Accelerator from now on."""
    precision = settle(accelerator, plan.config.precision)
    return replace(plan, config=replace(plan.config, precision=precision))


def _read_pairs(
    config: TrainConfig,
    images: Samples,
    accelerator: Accelerator | None,
    cache: Path | None,
    index: Path | None,
) -> Work[Pairs | None]:
    """What lies beside the images, if that is what is given: at their size, fitted as they are."""
    source = pairs_at(config)
    if source is None:
        return None
    kind, space = MEDIA[images.medium], images.unmeasured
    bits = 8 * images.stored.dtype.itemsize if getattr(kind, "BITS", ()) else None
    own = replace(
        config, data=source, size=space.size, channels=None, medium=images.medium, bits=bits
    )
    found = yield from _read(own, accelerator, cache / "given" if cache else None, index)
    return (yield from paired(config, images, found))


def _read(
    config: TrainConfig,
    accelerator: Accelerator | None,
    cache: Path | None,
    index: Path | None,
) -> Work[Samples]:
    several = accelerator if accelerator and accelerator.num_processes > 1 else None
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


def check_batch(config: TrainConfig, processes: int) -> None:
    """Refuse a batch that leaves a process without an image.

    Raises:
        UsageError: fewer images a step than processes times accumulation.
    """
    parts = processes * config.accumulation
    if config.batch_size is not None and config.batch_size < parts:
        raise UsageError(
            f"--batch-size {config.batch_size} is less than {processes} processes x "
            f"--accumulation {config.accumulation}"
        )


def check_fingerprint(plan: Plan, state: Mapping[str, Any]) -> Work[None]:
    """Warn if the images are not those that a run began with.

    Raises:
        DataError: they differ, with --strict.
        UsageError: the same images, in other classes, with other pairs or other rows.
    """
    expected = state.get("fingerprint")
    if expected in (None, plan.images.fingerprint):
        check_labels(plan.config, plan.class_fingerprints, state.get("classes", {}))
        check_pairs(plan.config, plan.given_fingerprints, state.get("given", {}))
        now = {**state.get("table", {}), **plan.table_fingerprints}
        check_rows(plan.config, now, state.get("table", {}))
        return
    text = f"the images in {plan.config.data} are not those that this run began with"
    if plan.config.strict:
        raise DataError(text, "Leave out --strict to go on with them")
    yield Notice(text, warning=True)


def model_of(
    plan: Plan,
    step: int,
    ema: Mapping[str, Tensor],
    raw: Mapping[str, Tensor] | None,
    weak: Weak | None = None,
) -> model_file.Model:
    """A model file of a run, with the weights after `step` steps."""
    return model_file.Model(
        blueprint=plan.blueprint,
        ema=ema,
        raw=raw,
        weak=weak.weights if weak else None,
        step=step,
        weak_step=weak.step if weak else None,
        data=plan.data(),
        training=for_model_file(plan.config),
        sampling=plan.teacher.sampling(plan.blueprint) if plan.teacher else None,
        distilled=plan.teacher.described if plan.teacher else None,
    )


def bring_up_to_date(path: Path, model: model_file.Model) -> None:
    """Write a model file, unless it holds this model already."""
    if not model_file.holds(path, model):
        model_file.save(path, model)
