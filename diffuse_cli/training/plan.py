"""Plan of a training run: its complete configuration, its model and its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import ConditioningArray, Conditions, DataGaussian, Space, distillation
from diffuse_cli.core.data_gaussian import measure
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.data.reader import match_quantities
from diffuse_cli.data.samples import select_evenly
from diffuse_cli.media import Indices
from diffuse_cli.models import image_conditioning, model_file
from diffuse_cli.models.blueprint import Blueprint, make_denoiser
from diffuse_cli.system import Notice, Work, translate_errors
from diffuse_cli.training import training_conditions
from diffuse_cli.training.configuration import to_model_options
from diffuse_cli.training.decisions import check_batch, decide_config
from diffuse_cli.training.ema_weights import EarlyWeights
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.teacher import Teacher, check_distillation, load_teacher
from diffuse_cli.training.time_budget import Laps
from diffuse_cli.training.training_data import TrainingData, read_data

MOST, STREAMED = 512, 64
"""The most samples to measure the Gaussian on, in memory and streamed. They give the standard
deviation of the mean brightness to 3 % and 9 %."""

HELD_OUT_IMAGES = 512
"""The most held-out images to measure while training, for a loss of one evaluation per image."""

AT_ONCE = 2**22
"""The most values to measure at a time."""


@dataclass(frozen=True)
class Plan:
    """Training run that is ready to start.

    Attributes:
        config: the complete configuration. With --minutes, its steps are a prediction.
        blueprint: the model to train.
        data: the training samples and the held-out samples.
        room: the most images whose gradient fits into memory at a time.
        teacher: the model to distil, or None.
    """

    config: TrainConfig
    blueprint: Blueprint
    data: TrainingData
    room: int = 64
    teacher: Teacher | None = None

    @property
    def evaluations(self) -> int:
        """Network evaluations that the loss of an image takes."""
        return distillation.EVALUATIONS if self.config.distills else 1

    @property
    def measured(self) -> Indices:
        """Held-out images to measure while training, for about equal cost with every loss."""
        return select_evenly(self.data.held_out, HELD_OUT_IMAGES // self.evaluations)

    @cached_property
    def encoder(self) -> image_conditioning.Conditioner | None:
        """Maker of the conditioning inputs, or None for a model without them."""
        return image_conditioning.Conditioner.from_blueprint(self.blueprint)

    def inputs(self, chosen: Indices) -> image_conditioning.ConditioningInputs | None:
        """Return the conditioning inputs of images outside of training steps, always the same."""
        if self.encoder is None:
            return None
        pairs = self.data.pairs[chosen] if self.data.pairs else None
        return self.encoder.choose_inputs(self.data.images.stored[chosen], pairs, self.config.seed)

    def model(
        self,
        step: int,
        steps: int,
        ema: Mapping[str, Tensor],
        raw: Mapping[str, Tensor] | None,
        weak: EarlyWeights | None,
        errors: DenoisingErrors | None = None,
        sampling: SamplerChoice | None = None,
    ) -> model_file.StoredModel:
        """Make the model file after `step` of `steps` steps.

        Args:
            sampling: the setting to recommend. A distilled model has its own.
        """
        return model_file.StoredModel(
            blueprint=self.blueprint,
            ema=ema,
            raw=raw,
            weak=weak.weights if weak else None,
            step=step,
            weak_step=weak.step if weak else None,
            data=self.data.describe(self.config.background, self.config.fit),
            training=to_model_options(replace(self.config, steps=steps, minutes=None)),
            sampling=self.teacher.sampling(self.blueprint) if self.teacher else sampling,
            distilled=self.teacher.description if self.teacher else None,
            errors=errors,
        )


def prepare_plan(
    config: TrainConfig,
    accelerator: Accelerator,
    run: RunDirectory | None = None,
    laps: Laps | None = None,
) -> Work[Plan]:
    """Read the data and complete the configuration.

    Args:
        run: the run directory, or None for an estimate.
        laps: the clock of --minutes, which skips the time of reading the data.

    Raises:
        DataError: there are no usable images, or values for which --transform is undefined.
        UsageError: the batch is too small for the processes, the network does not suit the images,
            the target is undefined for the process or for distillation, the memory is too small,
            or a resumed run had other classes.
        ModelFileError: the model to distil is missing or damaged.
    """
    earlier = RunDirectory(config.out)
    continues = config.resumes and earlier.exists()
    denoiser = make_denoiser(None, config)
    if config.distills:
        check_distillation(config.target, denoiser)
    check_batch(config, accelerator.num_processes, continues)
    base = earlier.blueprint() if config.resumes else None
    continued = base is not None
    if not base and config.init:
        base = model_file.load(config.init, weights=False).blueprint
    data = yield from read_data(config, accelerator, run, base, continued)
    images = data.images
    with translate_errors(lambda _: "--transform"):
        space = images.space
    if laps:
        laps()
    space = yield from keep_scale(space, base, continued)
    given = training_conditions.describe_conditioning(config, space, data.pairs, data.train)
    conditions = Conditions(
        classes=training_conditions.class_names(config, images, continued),
        given=keep_given_scale(given, space, base, continued),
        table=data.table,
    )
    run_config, blueprint, room = yield from decide_config(
        config, data, space, conditions, accelerator, continues
    )
    teacher = yield from load_teacher(run_config)
    gaussian = teacher.wiener if teacher else measure_gaussian(blueprint, data, run_config.flip)
    return Plan(
        config=run_config,
        blueprint=replace(blueprint, gaussian=gaussian),
        data=data,
        room=room,
        teacher=teacher,
    )


def measure_gaussian(blueprint: Blueprint, data: TrainingData, flip: bool) -> DataGaussian | None:
    """Measure the Gaussian of training samples at evenly spaced indices.

    Returns None for a conditional model without a Wiener filter, which has no Gaussian start.
    """
    if blueprint.conditions and not blueprint.wiener:
        return None
    indices = select_evenly(data.train, STREAMED if data.streams else MOST)
    space = blueprint.space
    batch_size = max(1, AT_ONCE // math.prod(space.shape))

    def read_batches() -> Iterator[torch.Tensor]:
        """Yield samples in the model's space, and with --flip their mirror images."""
        for start in range(0, len(indices), batch_size):
            stored = data.read(indices[start : start + batch_size])
            samples = space.to_model(torch.from_numpy(stored))
            yield samples
            if flip:
                yield samples.flip(-1)

    return measure(read_batches, bands=blueprint.wiener)


# Weights have learned a scale of their samples, so it stays if samples are added or exchanged.

FAR = 4.0
"""Factor between two standard deviations from which on a warning says so."""


def keep_scale(space: Space, base: Blueprint | None, continued: bool) -> Work[Space]:
    """Return the space of samples with the scale of an earlier model of the same kind.

    Levels keep their limits in a run that is continued. With --init, they have those of the data.

    Raises:
        DataError: the channels have the names of the model's in another order.
    """
    if base is None or _kind_of(space) != _kind_of(base.space):
        return space
    old = base.space
    yield from match_quantities(space.quantities, old.quantities)
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
    if given is None or old is None or given.what != old.what:
        return given
    if continued and old.labels:
        return old
    if given.channels != old.channels:
        return given
    limits = old.limits if continued else given.limits
    return replace(given, mean=old.mean, std=old.std, limits=limits)


def _kind_of(space: Space) -> tuple[Any, ...]:
    return space.medium, space.levels, space.channels, space.transform
