"""A training run that can begin: its configuration, its model and its data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.gaussian_start import NAME as LOW_FREQUENCIES
from diffuse_cli.core.gaussian_start import LowFrequencies, measure
from diffuse_cli.core.losses import TAUGHT
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.settings import to_dict
from diffuse_cli.core.space import Space
from diffuse_cli.core.targets import has_noise
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.data import Dataset
from diffuse_cli.media import MEDIA
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint, make_denoiser, make_process
from diffuse_cli.models.image_conditioning import Giver, Inputs, inputs_for
from diffuse_cli.system import files
from diffuse_cli.system.devices import settle, slow_precision
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.run_reader import MEMORY
from diffuse_cli.training.config_layers import default_loss
from diffuse_cli.training.configuration import complete, for_model_file
from diffuse_cli.training.ema_weights import Weak
from diffuse_cli.training.feed import readable, streams
from diffuse_cli.training.memory_estimate import images_at_a_time
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.teacher import Teacher, check_distilled, taught_by
from diffuse_cli.training.time_budget import Laps
from diffuse_cli.training.training_conditions import class_names, given_of
from diffuse_cli.training.training_data import TrainingData, read_data

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor


FEW = 2
"""Fewest images from which a model can do more than memorise."""

HANDFUL = 100
"""Fewer images than this are looked at by hand."""

MOST, STREAMED = 512, 64
"""The samples whose low frequencies are measured, and those of data that is read as it is used: of
so many, the deviation of the mean brightness is known to 3 % and 9 %."""

AT_ONCE = 2**22
"""Numbers that are measured at a time."""


@dataclass(frozen=True)
class Plan:
    """A training run that can begin.

    Attributes:
        config: complete, except for what --minutes decides.
        blueprint: the model to train.
        data: the samples to train on, and those held out.
        room: most images at a time of which the gradient fits into memory.
        teacher: the model that is distilled, if one is.
        low_frequencies: of the samples trained on, for a Gaussian start of sampling.
    """

    config: TrainConfig
    blueprint: Blueprint
    data: TrainingData
    room: int = 64
    teacher: Teacher | None = None
    low_frequencies: LowFrequencies | None = None

    @cached_property
    def giver(self) -> Giver | None:
        """Makes what the model is told of what it is given, if it is given anything."""
        return Giver.of(self.blueprint)

    def inputs(self, chosen: npt.NDArray[np.int64]) -> Inputs | None:
        """The inputs of these images outside of training steps: the same every time."""
        if self.giver is None:
            return None
        pairs = self.data.pairs[chosen] if self.data.pairs else None
        return inputs_for(self.giver, self.data.images.stored[chosen], pairs, self.config.seed)

    def model(
        self,
        step: int,
        steps: int,
        ema: Mapping[str, Tensor],
        raw: Mapping[str, Tensor] | None,
        weak: Weak | None,
    ) -> model_file.StoredModel:
        """Make a model file of a run of so many steps, with the weights after `step` of them."""
        low = {LOW_FREQUENCIES: self.low_frequencies.plain} if self.low_frequencies else {}
        return model_file.StoredModel(
            blueprint=self.blueprint,
            ema=ema,
            raw=raw,
            weak=weak.weights if weak else None,
            step=step,
            weak_step=weak.step if weak else None,
            data={**self.data.described(self.config), **low},
            training=for_model_file(replace(self.config, steps=steps)),
            sampling=self.teacher.sampling(self.blueprint) if self.teacher else None,
            distilled=self.teacher.described if self.teacher else None,
        )


def prepare(
    config: TrainConfig,
    accelerator: Accelerator,
    run: RunDirectory | None = None,
    laps: Laps | None = None,
) -> Work[Plan]:
    """Read the data and complete the configuration.

    Args:
        run: of a training that is not only estimated.
        laps: asked after the reading of the data, whose seconds do not count.

    Raises:
        DataError: no usable images.
        UsageError: a network that does not suit them, a target undefined under the process or not
            for distilling, too little memory, or classes other than those of a resumed run.
        ModelFileError: the model to distil is missing or damaged.
    """
    check_distilled(config, make_denoiser(None, config, make_process(config)))
    data = yield from read_data(config, accelerator, run)
    if laps:
        laps()
    images = data.images
    conditions = Conditions(
        classes=class_names(images) if config.classes else (),
        given=given_of(config, images.space, data.pairs, data.train),
        table=data.table,
    )
    done, blueprint = complete(config, images.space, conditions)
    yield from (Notice(line) for line in images.summary.lines())
    if config.init and images.summary.greyed:
        yield Notice("grey as the model of --init is; --channels 3 goes on in colour")
    if done.flip and (how := MEDIA[images.medium].flipped):
        yield Notice(f"--flip mirrors half of the {MEDIA[images.medium].many} {how}")
    if not config.goes_on:  # where it could still be changed
        for line in slow_precision(config.precision, config.device):
            yield Notice(line, warning=True)
        yield from too_narrow(config, blueprint)
    if len(data.train) < FEW:
        yield Notice(
            f"1 {MEDIA[images.medium].one} to train on: the model can only memorise it; what it "
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
    done = replace(done, precision=settle(accelerator, done.precision))
    return Plan(
        config=done,
        blueprint=blueprint,
        data=data,
        room=images_at_a_time(done, blueprint, accelerator),
        teacher=(yield from taught_by(done)),
        low_frequencies=low_frequencies(done, blueprint, data),
    )


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


def _mixed(config: TrainConfig, images: Dataset) -> Work[None]:
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


def low_frequencies(
    config: TrainConfig, blueprint: Blueprint, data: TrainingData
) -> LowFrequencies | None:
    """Measure samples evenly spaced among the ones trained on; None for a model that is conditioned
    or distilled, which is not sampled from them."""
    if blueprint.conditions or config.loss in TAUGHT:
        return None
    most = min(STREAMED if streams(data) else MOST, len(data.train))
    places = np.linspace(0, len(data.train) - 1, most).round().astype(np.int64)
    return measure(_batches(blueprint.space, data, data.train[places], config.flip))


def _batches(
    space: Space, data: TrainingData, indices: npt.NDArray[np.int64], flip: bool
) -> Iterator[torch.Tensor]:
    """These samples as the model sees them; with --flip mirrored ones too."""
    import torch

    each = max(1, AT_ONCE // math.prod(space.shape))
    for start in range(0, len(indices), each):
        chosen = readable(data, indices[start : start + each])
        samples = space.to_model(torch.from_numpy(np.ascontiguousarray(data.images.stored[chosen])))
        yield samples
        if flip:
            yield samples.flip(-1)


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
