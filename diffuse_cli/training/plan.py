"""Plan of a training run: its complete configuration, its model and its data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.config.sample_options import SamplerChoice
from diffuse_cli.config.train_options import MOST_STEPS, TrainConfig
from diffuse_cli.core.augmentations import AUGMENTATIONS
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.data_gaussian import DataGaussian, measure
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.core.losses import TAUGHT
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.settings import to_dict
from diffuse_cli.core.space import Space
from diffuse_cli.core.targets import has_noise
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.data import Dataset
from diffuse_cli.data.samples import select_evenly
from diffuse_cli.data.summary import plural
from diffuse_cli.media import MEDIA, Indices
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint, make_denoiser, make_process
from diffuse_cli.models.image_conditioning import Conditioner, ConditioningInputs, choose_inputs
from diffuse_cli.system import files
from diffuse_cli.system.devices import apply_precision, slow_precision
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.run_reader import MEMORY
from diffuse_cli.training.config_layers import default_loss
from diffuse_cli.training.configuration import BATCH, complete_config, to_model_options
from diffuse_cli.training.ema_weights import EarlyWeights
from diffuse_cli.training.feed import find_readable, find_streams
from diffuse_cli.training.memory_estimate import find_room
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


FEW = 2
"""The fewest images from which a model can do more than memorize."""

AUGMENTED, PASSES = 2000, 400
"""The most images that are augmented by default, and the fewest passes of a run over them. With
fewer passes there are no copies yet, and samples are better without (benchmarks/README.md)."""

LEAST_STEPS, MOST_PASSES = 1000, 1000
"""The fewest steps by default, and the most passes over the images in more steps. With more passes,
samples get closer to the images (benchmarks/README.md)."""

HANDFUL = 100
"""The number of images that a person can look through."""

MOST, STREAMED = 512, 64
"""The most samples to measure the Gaussian on, in memory and streamed. They give the standard
deviation of the mean brightness to 3 % and 9 %."""

AT_ONCE = 2**22
"""The most values to measure at a time."""


@dataclass(frozen=True)
class Plan:
    """Training run that is ready to start.

    Attributes:
        config: the configuration, complete except for options that --minutes decides.
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
            training=to_model_options(replace(self.config, steps=steps)),
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
        DataError: there are no usable images.
        UsageError: the network does not suit the images, the target is undefined for the process or
            for distillation, the memory is too small, or a resumed run had other classes.
        ModelFileError: the model to distil is missing or damaged.
    """
    check_distillation(config, make_denoiser(None, config, make_process(config)))
    data = yield from read_data(config, accelerator, run)
    if laps:
        laps()
    images = data.images
    base, continued = find_earlier(config)
    space = yield from keep_scale(images.space, base, continued)
    given = describe_conditioning(config, space, data.pairs, data.train)
    conditions = Conditions(
        classes=class_names(images, continued, config.loss) if config.classes else (),
        given=keep_given_scale(given, space, base, continued),
        table=data.table,
    )
    yield from (Notice(line) for line in images.summary.lines())
    yield from _describe_samples(config, images)
    config = yield from choose_length(config, data)
    run_config, blueprint = complete_config(config, space, conditions)
    if config.init and images.summary.greyed:
        kinds, max_channels = MEDIA[images.medium].kinds, MEDIA[images.medium].most_channels
        yield Notice(
            f"{kinds[1]} like the model of --init. Use --channels {max_channels} to "
            f"train in {kinds[max_channels]}"
        )
    if run_config.flip and (how := MEDIA[images.medium].flipped):
        yield Notice(f"--flip mirrors half of the {MEDIA[images.medium].many} {how}")
    if not RunDirectory(config.out).continues(config):  # a resumed run cannot change them
        for line in slow_precision(config.precision, config.device):
            yield Notice(line, warning=True)
        yield from warn_of_narrow_network(config, blueprint)
    if len(data.train) < FEW:
        yield Notice(
            f"only 1 {MEDIA[images.medium].one} to train on: all samples will be copies of it. Add "
            f"more {MEDIA[images.medium].many}",
            warning=True,
        )
    yield from _warn_of_mixed_sizes(config, images)
    if run_config.variance in LEARNED and run_config.loss == "simple":
        yield Notice(
            "--loss simple does not train the learned variance. Use "
            f"--loss {default_loss(run_config.variance)}",
            warning=True,
        )
    run_config = replace(run_config, precision=apply_precision(accelerator, run_config.precision))
    run_config, room = yield from find_room(run_config, blueprint, accelerator)
    teacher = yield from load_teacher(run_config)
    gaussian = teacher.wiener if teacher else measure_gaussian(run_config, blueprint, data)
    plan = Plan(
        config=run_config,
        blueprint=replace(blueprint, gaussian=gaussian),
        data=data,
        room=room,
        teacher=teacher,
    )
    check_augmentations(plan)
    return plan


def _describe_samples(config: TrainConfig, images: Dataset) -> Iterator[Notice]:
    """Report classes that a new run does not use, and exact copies."""
    summary, source = images.summary, shlex.quote(config.data)
    count = len(summary.classes)
    if count > 1 and not (config.classes or config.resumes or config.loss in TAUGHT):
        yield Notice(f"{count:,} classes: use --classes to choose one when you sample")
    if copies := np.count_nonzero(images.first_copies != np.arange(len(images))):
        look = "" if config.data.startswith(MEMORY) else f". List them with: diffuse info {source}"
        verb = "is a copy of another" if copies == 1 else "are copies of others"
        yield Notice(f"{copies:,} of {summary.format_samples(len(images))} {verb}{look}")


def choose_length(config: TrainConfig, data: TrainingData) -> Work[TrainConfig]:
    """Decide on the steps of a run without --steps and --minutes, by the number of samples."""
    if config.steps is not None or config.minutes is not None:
        return config
    count = len(data.train)
    steps = plan_steps(count, config.batch_size or BATCH)
    if steps < MOST_STEPS:
        yield Notice(
            f"{plural(steps, 'step')} for {data.images.summary.format_samples(count)}: with more, "
            "samples may become copies (change with --steps)"
        )
    return replace(config, steps=steps)


def plan_steps(count: int, batch_size: int) -> int:
    """Return the steps of a run by default, by the number of its samples."""
    return min(MOST_STEPS, max(LEAST_STEPS, count * MOST_PASSES // batch_size))


def list_augmentations(plan: Plan) -> tuple[str, ...]:
    """Return the names of the augmentations that suit the samples, the network and the loss."""
    if plan.teacher or not hasattr(plan.blueprint.build_on_meta(), "add_augmentation"):
        return ()
    return tuple(MEDIA[plan.data.images.medium].augmentations)


def check_augmentations(plan: Plan) -> None:
    """Refuse an augmentation of --augment that does not suit the samples, network or loss.

    Raises:
        UsageError: one does not.
    """
    suited, config = list_augmentations(plan), plan.config
    if config.augment and not suited:
        cause = f"--loss {config.loss}" if plan.teacher else f"network '{plan.blueprint.network}'"
        raise UsageError(f"--augment does not work with {cause}", "Remove it")
    for name in config.augment or ():
        if name in AUGMENTATIONS.entries and name not in suited:
            text = f"--augment {name} is not for {MEDIA[plan.data.images.medium].many}"
            raise UsageError(text, f"Use {', '.join(suited)}")


def choose_augmentations(plan: Plan) -> Work[Plan]:
    """Decide on --augment auto, by the number of samples and how often the run sees each."""
    config, count = plan.config, len(plan.data.train)
    if config.augment is not None:
        return plan
    assert config.batch_size is not None
    passes = config.num_steps * config.batch_size / max(count, 1)
    names = list_augmentations(plan) if count <= AUGMENTED and passes >= PASSES else ()
    if names:
        yield Notice(
            f"each of {plan.data.images.summary.format_samples(count)} is seen {passes:,.0f} "
            f"times, so they are augmented by {', '.join(names)} (not with --augment none)"
        )
    return replace(plan, config=replace(config, augment=names))


def warn_of_narrow_network(config: TrainConfig, blueprint: Blueprint) -> Iterator[Notice]:
    """Warn of a network that is too narrow to predict noise, and suggest settings."""
    name = blueprint.network
    full_rank = getattr(NETWORKS[name], "full_rank", None)
    if full_rank is None or not has_noise(blueprint.diffusion.target):
        return
    settings = to_dict(blueprint.config)
    able = to_dict(full_rank(blueprint.config, blueprint.space))
    changed = {key: value for key, value in able.items() if value != settings.get(key)}
    ways = " and ".join(
        f"--width {value}"
        if (key, config.width) == ("width", settings.get("width"))
        else f"[{name}] {key} = {value}{'' if config.init else ' in --config'}"
        for key, value in changed.items()
    )
    if ways:
        yield Notice(
            "the network is too narrow to remove all noise: samples will stay noisy. "
            f"{'Use a model trained with' if config.init else 'Set'} {ways}",
            warning=True,
        )


def _warn_of_mixed_sizes(config: TrainConfig, images: Dataset) -> Work[None]:
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


def check_batch(config: TrainConfig, processes: int) -> None:
    """Refuse a batch that leaves a process without an image.

    A resumed run may have more processes than it had, and computes its batch in fewer parts.

    Raises:
        UsageError: the batch is smaller than processes times accumulation, or on --resume smaller
            than the number of processes.
    """
    batch = config.batch_size or (BATCH if config.minutes is None else None)
    if batch is None:
        return
    if RunDirectory(config.out).continues(config):
        if batch < processes:
            text = f"the run's --batch-size {batch} is less than {processes} processes"
            raise UsageError(text, f"Resume with {batch} processes or fewer")
        return
    parts = processes * config.accumulation
    if batch < parts:
        raise UsageError(
            f"--batch-size {batch} is less than {processes} processes x "
            f"--accumulation {config.accumulation}",
            f"Set --batch-size {parts} or more",
        )
