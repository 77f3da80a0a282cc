"""Complete configuration of a run, decided in one place from the data and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from diffuse_cli.config import presets
from diffuse_cli.config.options import convert_options
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import MOST_STEPS, WEIGHTED, WEIGHTING, TrainConfig
from diffuse_cli.core import AUGMENTATIONS, NETWORKS, Conditions, Settings, Space
from diffuse_cli.core.data_gaussian import LONGEST
from diffuse_cli.core.networks import largest_width
from diffuse_cli.core.parameterization import LEARNED, has_noise
from diffuse_cli.core.settings import to_dict
from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.data.summary import plural
from diffuse_cli.media import MEDIA, layout_name
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import Notice, UsageError, Work
from diffuse_cli.system.devices import (
    apply_precision,
    can_compile,
    device_type,
    resolve_precision,
    slow_precision,
)
from diffuse_cli.training.configuration import default_loss
from diffuse_cli.training.memory_estimate import find_room, fit_into_memory
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.time_budget import FIRST, SMALLEST, choose_batch_size
from diffuse_cli.training.time_estimate import predict_step_seconds
from diffuse_cli.training.training_data import TrainingData

if TYPE_CHECKING:
    from accelerate import Accelerator

OPTIMIZER = "muon"
"""The default optimizer (benchmarks/README.md)."""

COMPILED_STEPS, COMPILED_MINUTES = 5000, 20
"""Length of a run from which compiling its network pays off on a GPU. It takes minutes."""

AUGMENTED, PASSES = 2000, 400
"""The most images that are augmented by default, and the fewest passes of a run over them. With
fewer passes there are no copies yet, and samples are better without (benchmarks/README.md)."""

LEAST_STEPS, MOST_PASSES = 1000, 1000
"""The fewest steps by default, and the most passes over the images in more steps. With more passes,
samples get closer to the images (benchmarks/README.md)."""


def decide_config(
    config: TrainConfig,
    data: TrainingData,
    space: Space,
    conditions: Conditions,
    accelerator: Accelerator,
) -> Work[tuple[TrainConfig, Blueprint, int]]:
    """Decide what is open in a configuration: length, batch, precision, memory, augmentation.

    Each decision is reported with its reason. A complete configuration stays the same.

    Returns:
        The configuration, the model, and the images per part that every process has memory for.

    Raises:
        UsageError: the network or an augmentation does not suit the samples, or the memory is too
            small.
    """
    processes, medium = accelerator.num_processes, MEDIA[data.images.medium]
    continues = RunDirectory(config.out).continues(config)
    typed = config
    config = yield from _choose_length(config, data)
    config, blueprint = complete_config(config, space, conditions)
    if config.flip and medium.flipped:
        yield Notice(f"--flip mirrors half of the {medium.many} {medium.flipped}")
    if not continues:  # a resumed run cannot change them
        for line in slow_precision(typed.precision, config.device):
            yield Notice(line, warning=True)
        yield from warn_of_narrow_network(typed, blueprint)
    if config.variance in LEARNED and config.loss == "simple":
        yield Notice(
            "--loss simple does not train the learned variance. Use "
            f"--loss {default_loss(config.variance)}",
            warning=True,
        )
    config = replace(config, precision=apply_precision(accelerator, config.precision))
    config, room = yield from find_room(config, blueprint, accelerator)
    config = _fill_minutes(config, blueprint, processes)
    config = yield from fit_into_memory(config, room, processes)
    _check_augmentations(config, blueprint)
    config = yield from _choose_augmentations(config, blueprint, data)
    return config, blueprint, room


def _fill_minutes(config: TrainConfig, blueprint: Blueprint, processes: int) -> TrainConfig:
    """Decide on the batch size of --minutes, and on its first number of steps.

    Both come from predicted times, because measured times depend on the load of the machine. The
    run corrects the number of steps (`time_budget`).
    """
    if config.minutes is None or config.steps is not None:
        return config
    seconds = 60 * config.minutes
    if config.batch_size is None:
        batch_size = choose_batch_size(
            seconds,
            lambda images: predict_step_seconds(config, blueprint, images, processes),
            max(SMALLEST, processes * config.accumulation),
        )
        config = with_batch_size(config, batch_size, blueprint.space, blueprint.config)
    assert config.batch_size is not None
    step = predict_step_seconds(config, blueprint, config.batch_size, processes)
    return replace(config, steps=max(FIRST, round(seconds / step)))


def with_batch_size(
    config: TrainConfig, batch_size: int, space: Space, settings: Settings
) -> TrainConfig:
    """Return `config` with a batch size, and with the preset's learning rate if it has none.

    Args:
        settings: the settings of the network for this space.
    """
    lr = config.lr
    if lr is None:
        width = getattr(settings, "width", None)
        lr = presets.scale_learning_rate(config.preset, width, batch_size, space.dims)
    return replace(config, batch_size=batch_size, lr=lr)


def resolve_compile(config: TrainConfig, device: str) -> bool:
    """Whether to compile the network: if asked to, else in long runs on a GPU.

    Like the precision, the choice does not depend on timings. `distill` does not compile.
    """
    if config.compile is not None:
        return config.compile
    if config.minutes is None:
        long = config.num_steps >= COMPILED_STEPS
    else:
        long = config.minutes >= COMPILED_MINUTES
    return long and not config.distills and can_compile(device)


def resolve_wiener(config: TrainConfig, settings: Settings, space: Space) -> bool:
    """Whether the network corrects a Wiener filter: if asked to, else if it reads patches.

    Without patches the filter made samples worse at 32x32 (benchmarks/README.md).

    Raises:
        UsageError: the filter is asked for, and the samples are too large for it.
    """
    # The network reads the estimate of each channel, too.
    fits = max(space.size) <= LONGEST and 2 * space.channels <= MOST_CHANNELS
    if config.wiener and not fits:
        text = f"--wiener takes at most {LONGEST:,} values a side and {MOST_CHANNELS // 2} channels"
        raise UsageError(text, "Remove it")
    return fits and getattr(settings, "patch", 1) > 1 if config.wiener is None else config.wiener


def complete_config(
    config: TrainConfig, space: Space, conditions: Conditions
) -> tuple[TrainConfig, Blueprint]:
    """Decide the options that depend on the data and the machine, and describe the model.

    --minutes leaves batch size and learning rate open. A complete configuration stays the same.
    """
    device = device_type(config.device)
    preset = presets.choose(config, space, device)
    loss = config.loss or default_loss(config.variance)
    network, settings = presets.resolve_architecture(config, preset, space)
    if config.batch_size or config.minutes is None:
        config = replace(config, preset=preset)
        config = with_batch_size(config, config.batch_size or presets.BATCH, space, settings)
    width = getattr(settings, "width", None)
    config = replace(
        config,
        preset=preset,
        network=network,
        medium=space.medium,
        channels=space.channels,
        size=space.size,
        layout=layout_name(space.layout),  # the background is its own option
        rate=space.rate,
        transform=space.transform,
        width=width,
        architecture=to_dict(settings),
        loss=loss,
        wiener=resolve_wiener(config, settings, space),
        given_dropout=conditions.given.dropout if conditions.given else None,
        given_noise=conditions.given.noise if conditions.given else None,
        optimizer=config.optimizer or OPTIMIZER,
        weighting=config.weighting or ("none" if loss in WEIGHTED else WEIGHTING),
        precision=resolve_precision(config.precision, config.device, largest_width(settings)),
        compile=resolve_compile(config, device),
    )
    blueprint = Blueprint(
        space=space,
        network=network,
        config=settings,
        conditions=conditions,
        diffusion=convert_options(config, DiffusionConfig),
        wiener=bool(config.wiener),
    )
    blueprint.check_network()
    return config, blueprint


def _choose_length(config: TrainConfig, data: TrainingData) -> Work[TrainConfig]:
    """Decide on the steps of a run without --steps and --minutes, by the number of samples."""
    if config.steps is not None or config.minutes is not None:
        return config
    count = len(data.train)
    steps = plan_steps(count, config.batch_size or presets.BATCH)
    if steps < MOST_STEPS:
        yield Notice(
            f"{plural(steps, 'step')} for {data.images.summary.format_samples(count)}: with more, "
            "samples may become copies (change with --steps)"
        )
    return replace(config, steps=steps)


def plan_steps(count: int, batch_size: int) -> int:
    """Return the steps of a run by default, by the number of its samples."""
    return min(MOST_STEPS, max(LEAST_STEPS, count * MOST_PASSES // batch_size))


def list_augmentations(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the names of the augmentations that suit the samples and the network."""
    if not hasattr(blueprint.build_on_meta(), "add_augmentation"):
        return ()
    return tuple(MEDIA[blueprint.space.medium].augmentations)


def _check_augmentations(config: TrainConfig, blueprint: Blueprint) -> None:
    """Refuse an augmentation of --augment that does not suit the samples or the network.

    Raises:
        UsageError: one does not.
    """
    if not config.augment:
        return
    suited = list_augmentations(blueprint)
    if not suited:
        text = f"--augment does not work with network '{blueprint.network}'"
        raise UsageError(text, "Remove it")
    for name in config.augment:
        if name in AUGMENTATIONS.entries and name not in suited:
            text = f"--augment {name} is not for {MEDIA[blueprint.space.medium].many}"
            raise UsageError(text, f"Use {', '.join(suited)}")


def _choose_augmentations(
    config: TrainConfig, blueprint: Blueprint, data: TrainingData
) -> Work[TrainConfig]:
    """Decide on --augment auto, by the number of samples and how often the run sees each."""
    if config.augment is not None:
        return config
    assert config.batch_size is not None
    count = len(data.train)
    passes = config.num_steps * config.batch_size / max(count, 1)
    many = count > AUGMENTED or passes < PASSES
    names = () if many else list_augmentations(blueprint)
    if names:
        yield Notice(
            f"each of {data.images.summary.format_samples(count)} is seen {passes:,.0f} times, so "
            f"they are augmented by {', '.join(names)} (not with --augment none)"
        )
    return replace(config, augment=names)


def warn_of_narrow_network(config: TrainConfig, blueprint: Blueprint) -> Iterator[Notice]:
    """Warn of a network that is too narrow to predict noise, and suggest settings."""
    name = blueprint.network
    if not has_noise(blueprint.diffusion.target):
        return
    settings = to_dict(blueprint.config)
    able = to_dict(NETWORKS[name].full_rank(blueprint.config, blueprint.space))
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


def check_batch(config: TrainConfig, processes: int) -> None:
    """Refuse a batch that leaves a process without an image.

    A resumed run may have more processes than it had, and computes its batch in fewer parts.

    Raises:
        UsageError: the batch is smaller than processes times accumulation, or on --resume smaller
            than the number of processes.
    """
    batch = config.batch_size or (presets.BATCH if config.minutes is None else None)
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
