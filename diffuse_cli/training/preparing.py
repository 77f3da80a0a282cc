"""What stands before the first step: images, the complete configuration, the first weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config import TrainConfig, UNetConfig
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.data import Images, held_out_rule, open_index, read_images, save_index
from diffuse_cli.errors import DataError, UsageError
from diffuse_cli.events import Notice, Work
from diffuse_cli.modelfile import make_denoiser
from diffuse_cli.options import from_dict
from diffuse_cli.training.configuring import complete, default_loss
from diffuse_cli.training.rundir import RunDirectory

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

FEW = 2
"""With fewer images a model can only memorise."""

MAPPED_SHARE = 4
"""Pixels that need more than one part in so many of the memory are mapped from a file."""


CLASSES_BYTES = 750_000
"""Names of classes, as JSON, that the header of a model file has room for beside all else."""


@dataclass(frozen=True)
class Plan:
    """A training that could begin.

    Attributes:
        config: complete.
        unet: its network.
        images: all of them.
        train, held_out: indices into the images.
        init: the weights to start from, or None.
        room: images that the network is shown at a time outside of training, at most.
    """

    config: TrainConfig
    unet: UNetConfig
    images: Images
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    init: Mapping[str, Tensor] | None
    room: int = 64

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names for the model file; none where it would not hold them and the network
        does not ask for them."""
        names = self.images.class_names
        return names if self.config.classes or _fits(names) else ()

    def data(self) -> dict[str, Any]:
        """What a model file says of its data."""
        return {
            "fingerprint": self.images.fingerprint,
            "images": len(self.images),
            "held_out": {**held_out_rule(), "images": len(self.held_out)},
            "background": self.config.background,
        }


def prepare(
    config: TrainConfig, accelerator: Accelerator | None = None, run: RunDirectory | None = None
) -> Work[Plan]:
    """Read the images and complete the configuration.

    With several processes one of each machine reads, and the others map what it has read.

    Raises:
        DataError: no usable images.
        UsageError: a network that does not suit them, or a target undefined under the process.
        ModelFileError: --init is not a model file.
    """
    make_denoiser(None, config)
    images = yield from _read(config, accelerator, run)
    num_classes = _count_classes(images) if config.classes else 0
    done = complete(config, images.size, images.channels, num_classes)
    unet = from_dict(UNetConfig, done.unet, "[unet]")
    yield from (Notice(line) for line in images.summary.lines())
    held_out = images.held_out
    if int((~held_out).sum()) < FEW:
        yield Notice(
            "1 image to train on: the model can only memorise it; what it draws will be a copy",
            warning=True,
        )
    if done.variance in LEARNED and done.loss == "simple":
        yield Notice(
            "--loss simple trains no variance, which stays where it began; use "
            f"--loss {default_loss(done.variance)}",
            warning=True,
        )
    init = None if config.resume else first_weights(config, unet)
    indices = np.arange(len(images))
    return Plan(done, unet, images, indices[~held_out], indices[held_out], init)


def _count_classes(images: Images) -> int:
    """The number of classes.

    Raises:
        DataError: the images lie in fewer than two class folders, or in more than a model file has
            room for.
    """
    if len(images.class_names) < 2:
        raise DataError(
            "--classes: the images are not in class folders",
            "Put each class into a folder of its name, or leave --classes out",
        )
    if not _fits(images.class_names):
        raise DataError(
            f"--classes: {len(images.class_names):,} class folders, whose names do not fit into a "
            "model file",
            "Leave --classes out",
        )
    return len(images.class_names)


def _fits(names: tuple[str, ...]) -> bool:
    return len(json.dumps(names)) <= CLASSES_BYTES


def _read(
    config: TrainConfig, accelerator: Accelerator | None, run: RunDirectory | None
) -> Work[Images]:
    several = accelerator is not None and accelerator.num_processes > 1
    if several and run and accelerator and not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
        images = open_index(run.cache)
        accelerator.wait_for_everyone()
        return images
    images = yield from read_images(
        config.data,
        size=config.size,
        channels=config.unet.get("channels"),
        background=config.background,
        strict=config.strict,
        workers=config.workers,
        cache=run.cache if run else None,
        map_over=0 if several else memory() // MAPPED_SHARE,
    )
    if several and run and accelerator:
        save_index(images, run.cache)
        accelerator.wait_for_everyone()
        accelerator.wait_for_everyone()
    return images


def first_weights(config: TrainConfig, unet: UNetConfig) -> Mapping[str, Tensor] | None:
    """The weights of --init, which a run that goes on from a checkpoint no longer needs.

    Raises:
        ModelFileError: not a model file.
        UsageError: of another network.
    """
    if not config.init:
        return None
    from diffuse_cli.modelfile import load

    model = load(config.init)
    if model.unet != unet:
        raise UsageError(
            f"--init {config.init} has another network than this configuration",
            "Leave the network's options out: they come from the model",
        )
    return model.ema


def memory() -> int:
    """The memory of the machine in bytes, or 8 GiB where the system does not say."""
    import os

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


def check_fingerprint(plan: Plan, expected: str | None) -> Work[None]:
    """Warn where the images are not those a run began with.

    Raises:
        DataError: they differ, with --strict.
    """
    if expected in (None, plan.images.fingerprint):
        return
    text = f"the images in {plan.config.data} are not those that this run began with"
    if plan.config.strict:
        raise DataError(text, "Leave out --strict to go on with them")
    yield Notice(text, warning=True)
