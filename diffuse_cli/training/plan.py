"""Plan of a training run: its complete configuration, its model and its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Conditions, DataGaussian, DenoisingErrors, Space
from diffuse_cli.core.data_gaussian import measure
from diffuse_cli.data.samples import select_evenly
from diffuse_cli.media import Indices
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint, make_denoiser, make_process
from diffuse_cli.models.image_conditioning import Conditioner, ConditioningInputs, choose_inputs
from diffuse_cli.system import Work, translate_errors
from diffuse_cli.training.configuration import to_model_options
from diffuse_cli.training.decisions import decide_config
from diffuse_cli.training.ema_weights import EarlyWeights
from diffuse_cli.training.feed import find_readable, find_streams
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.teacher import Teacher, check_distillation, load_teacher
from diffuse_cli.training.time_budget import Laps
from diffuse_cli.training.training_conditions import class_names, describe_conditioning
from diffuse_cli.training.training_data import (
    TrainingData,
    find_earlier,
    keep_given_scale,
    keep_scale,
    read_data,
)

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor


MOST, STREAMED = 512, 64
"""The most samples to measure the Gaussian on, in memory and streamed. They give the standard
deviation of the mean brightness to 3 % and 9 %."""

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

    @cached_property
    def encoder(self) -> Conditioner | None:
        """Maker of the conditioning inputs, or None for a model without them."""
        return Conditioner.from_blueprint(self.blueprint)

    def inputs(self, chosen: Indices) -> ConditioningInputs | None:
        """Return the conditioning inputs of images outside of training steps, always the same."""
        if self.encoder is None:
            return None
        pairs = self.data.pairs[chosen] if self.data.pairs else None
        return choose_inputs(self.encoder, self.data.images.stored[chosen], pairs, self.config.seed)

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
            data=self.data.describe(self.config),
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
        UsageError: the network does not suit the images, the target is undefined for the process or
            for distillation, the memory is too small, or a resumed run had other classes.
        ModelFileError: the model to distil is missing or damaged.
    """
    check_distillation(config, make_denoiser(None, config, make_process(config)))
    data = yield from read_data(config, accelerator, run)
    images = data.images
    with translate_errors(lambda _: "--transform"):
        space = images.space
    if laps:
        laps()
    base, continued = find_earlier(config)
    space = yield from keep_scale(space, base, continued)
    given = describe_conditioning(config, space, data.pairs, data.train)
    conditions = Conditions(
        classes=class_names(images, continued, distills=config.distills) if config.classes else (),
        given=keep_given_scale(given, space, base, continued),
        table=data.table,
    )
    run_config, blueprint, room = yield from decide_config(
        config, data, space, conditions, accelerator
    )
    teacher = yield from load_teacher(run_config)
    gaussian = teacher.wiener if teacher else measure_gaussian(run_config, blueprint, data)
    return Plan(
        config=run_config,
        blueprint=replace(blueprint, gaussian=gaussian),
        data=data,
        room=room,
        teacher=teacher,
    )


def measure_gaussian(
    config: TrainConfig, blueprint: Blueprint, data: TrainingData
) -> DataGaussian | None:
    """Measure the Gaussian of training samples at evenly spaced indices.

    Returns None for a conditional model without a Wiener filter, which has no Gaussian start.
    """
    if blueprint.conditions and not blueprint.wiener:
        return None
    indices = select_evenly(data.train, STREAMED if find_streams(data) else MOST)
    chosen = blueprint.space, data, indices, config.flip
    return measure(lambda: _read_batches(*chosen), bands=blueprint.wiener)


def _read_batches(
    space: Space, data: TrainingData, indices: Indices, flip: bool
) -> Iterator[torch.Tensor]:
    """Yield samples in the model's space, and with --flip their mirror images."""
    import torch

    batch_size = max(1, AT_ONCE // math.prod(space.shape))
    for start in range(0, len(indices), batch_size):
        chosen = find_readable(data, indices[start : start + batch_size])
        samples = space.to_model(torch.from_numpy(np.ascontiguousarray(data.images.stored[chosen])))
        yield samples
        if flip:
            yield samples.flip(-1)
