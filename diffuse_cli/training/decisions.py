"""Complete configuration of a run, decided in one place from the data and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from accelerate import Accelerator

from diffuse_cli.config import presets, train_options
from diffuse_cli.config.options import convert_options
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import NETWORKS, Conditions, Space
from diffuse_cli.core.augmentations import AUGMENTATIONS
from diffuse_cli.core.data_gaussian import LONGEST
from diffuse_cli.core.parameterization import LEARNED, has_noise
from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import MEDIA, layout_name
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import Notice, UsageError, Work, devices, plural
from diffuse_cli.training import step_cost, time_budget
from diffuse_cli.training.configuration import default_loss
from diffuse_cli.training.training_data import TrainingData

OPTIMIZER = "muon"
"""The default optimizer (benchmarks/README.md)."""

COMPILED_STEPS, COMPILED_MINUTES = 5000, 20
"""Length of a run from which compiling its network pays off on a GPU. It takes minutes."""

WIDENED, WIDE, WIDE_OPERATIONS, WIDE_SIDE = "tiny", 64, 4e14, 64
"""The preset whose width is WIDE if samples have at most WIDE_SIDE per side and --minutes leave
time for WIDE_OPERATIONS, 37 minutes on one core with bfloat16 (benchmarks/README.md)."""

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
    continues: bool,
) -> Work[tuple[TrainConfig, Blueprint, int]]:
    """Decide what is open in a configuration: length, batch, precision, memory, augmentation.

    Each decision is reported with its reason. A complete configuration stays the same.

    Args:
        continues: whether the run continues one that has started.

    Returns:
        The configuration, the model, and the images per part that every process has memory for.

    Raises:
        UsageError: the network or an augmentation does not suit the samples, or the memory is too
            small.
    """
    medium = MEDIA[data.images.medium]
    typed = config
    config = yield from _choose_length(config, data)
    config = choose_width(config, space, accelerator.num_processes)
    if config.width != typed.width:
        text = f"{config.width} channels, because --minutes leave time for a wide network"
        yield Notice(f"{text} (change with --width)")
    config, blueprint = complete_config(config, space, conditions)
    if config.flip and medium.flipped:
        yield Notice(f"--flip mirrors half of the {medium.many} {medium.flipped}")
    if not continues:  # a resumed run cannot change them
        for line in devices.slow_precision(typed.precision, config.device):
            yield Notice(line, warning=True)
        yield from warn_of_narrow_network(typed, blueprint)
    if config.variance in LEARNED and config.loss == "simple":
        yield Notice(
            "--loss simple does not train the learned variance. Use "
            f"--loss {default_loss(config.variance)}",
            warning=True,
        )
    config = replace(config, precision=devices.apply_precision(accelerator, config.precision))
    config, room = yield from step_cost.find_room(config, blueprint, accelerator)
    if config.minutes is not None and (config.steps is None or config.batch_size is None):
        config = fill_minutes(config, blueprint, accelerator.num_processes)
    config = yield from step_cost.split_batch(config, room, accelerator.num_processes)
    config = yield from _choose_augmentations(config, blueprint, data)
    return config, blueprint, room


def check_batch(config: TrainConfig, processes: int, continues: bool) -> None:
    """Refuse a batch that leaves a process without an image.

    A resumed run may have more processes than it had, and computes its batch in fewer parts.

    Raises:
        UsageError: the batch is smaller than processes times accumulation, or on --resume smaller
            than the number of processes.
    """
    batch = config.batch_size or (presets.BATCH if config.minutes is None else None)
    if batch is None:
        return
    if continues:
        if batch < processes:
            text = f"the run's --batch-size {batch} is less than {processes} processes"
            raise UsageError(text, f"Resume with {batch} processes or fewer", code="invalid_value")
        return
    parts = processes * config.accumulation
    if batch < parts:
        raise UsageError(
            f"--batch-size {batch} is less than {processes} processes x "
            f"--accumulation {config.accumulation}",
            f"Set --batch-size {parts} or more",
            code="invalid_value",
        )


def fill_minutes(config: TrainConfig, blueprint: Blueprint, processes: int) -> TrainConfig:
    """Decide on the batch size of --minutes, and on its first number of steps.

    Both come from predicted times, because measured times depend on the load of the machine. The
    run corrects the number of steps (`time_budget`).
    """
    assert config.minutes is not None
    seconds = 60 * config.minutes
    if config.batch_size is None:
        batch_size = time_budget.choose_batch_size(
            seconds,
            lambda images: step_cost.predict_seconds(config, blueprint, images, processes),
            max(time_budget.SMALLEST, processes * config.accumulation),
        )
        config = with_batch_size(config, batch_size, blueprint.space.dims)
    step = step_cost.predict_seconds(config, blueprint, config.images_per_step, processes)
    steps = min(train_options.STEP_LIMIT, max(time_budget.FIRST, round(seconds / step)))
    return replace(config, steps=steps)


def with_batch_size(config: TrainConfig, batch_size: int, dims: int) -> TrainConfig:
    """Return `config` with a batch size, and with the preset's learning rate if it has none.

    Args:
        dims: the number of spatial dimensions of the samples.
    """
    lr = config.lr
    if lr is None:
        lr = presets.scale_learning_rate(config.preset, config.width, batch_size, dims)
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
    return long and not config.distills and devices.can_compile(device)


def resolve_wiener(wiener: bool | None, patch: int, space: Space) -> bool:
    """Whether the network corrects a Wiener filter: if asked to, else if it reads patches.

    Without patches the filter made samples worse at 32x32 (benchmarks/README.md).

    Args:
        patch: the side of the network's patches.

    Raises:
        UsageError: the filter is asked for, and the samples are too large for it.
    """
    # The network reads the estimate of each channel, too.
    fits = max(space.size) <= LONGEST and 2 * space.channels <= MOST_CHANNELS
    if wiener and not fits:
        text = f"--wiener takes at most {LONGEST:,} values a side and {MOST_CHANNELS // 2} channels"
        raise UsageError(text, "Remove it", code="option_unsuited")
    return fits and patch > 1 if wiener is None else wiener


def choose_width(config: TrainConfig, space: Space, processes: int) -> TrainConfig:
    """Return `config` with a wider network than the default if --minutes leave time for it.

    A width or a network that was chosen stays, also in a resumed run.
    """
    if config.preset or config.width or config.network or config.architecture:
        return config
    is_default = presets.choose(config, space, devices.device_type(config.device)) == WIDENED
    if not is_default or space.dims != 2 or max(space.size) > WIDE_SIDE:
        return config
    precision = devices.resolve_precision(config.precision, config.device, WIDE)
    speed = processes * step_cost.predict_speed(config.device, precision)
    is_enough = 60 * (config.minutes or 0) * speed >= WIDE_OPERATIONS
    return replace(config, width=WIDE) if is_enough else config


def complete_config(
    config: TrainConfig, space: Space, conditions: Conditions
) -> tuple[TrainConfig, Blueprint]:
    """Decide the options that depend on the data and the machine, and describe the model.

    --minutes leaves batch size and learning rate open. A complete configuration stays the same.
    """
    device = devices.device_type(config.device)
    preset = presets.choose(config, space, device)
    loss = config.loss or default_loss(config.variance)
    network, settings = presets.resolve_architecture(config, preset, space)
    patch, width = NETWORKS[network].patch(settings), NETWORKS[network].width(settings)
    config = replace(config, preset=preset, width=width)
    if config.batch_size or config.minutes is None:
        config = with_batch_size(config, config.batch_size or presets.BATCH, space.dims)
    config = replace(
        config,
        network=network,
        medium=space.medium,
        channels=space.channels,
        size=space.size,
        layout=layout_name(space.layout),  # the background is its own option
        rate=space.rate,
        transform=space.transform,
        architecture=settings.to_dict(),
        loss=loss,
        wiener=resolve_wiener(config.wiener, patch, space),
        given_dropout=conditions.given.dropout if conditions.given else None,
        given_noise=conditions.given.noise if conditions.given else None,
        optimizer=config.optimizer or OPTIMIZER,
        weighting=config.weighting
        or ("none" if loss in train_options.WEIGHTED else train_options.WEIGHTING),
        precision=devices.resolve_precision(
            config.precision, config.device, NETWORKS[network].widest(settings)
        ),
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
    if steps < train_options.MOST_STEPS:
        yield Notice(
            f"{plural(steps, 'step')} for {data.images.summary.format_samples(count)}: with more, "
            "samples may become copies (change with --steps)"
        )
    return replace(config, steps=steps)


def plan_steps(count: int, batch_size: int) -> int:
    """Return the steps of a run by default, by the number of its samples."""
    return min(train_options.MOST_STEPS, max(LEAST_STEPS, count * MOST_PASSES // batch_size))


def list_augmentations(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the names of the augmentations that suit the samples and the network."""
    if not hasattr(blueprint.build_on_meta(), "add_augmentation"):
        return ()
    return tuple(MEDIA[blueprint.space.medium].augmentations)


def _choose_augmentations(
    config: TrainConfig, blueprint: Blueprint, data: TrainingData
) -> Work[TrainConfig]:
    """Check --augment, or decide on it by the number of samples and how often each is seen.

    Raises:
        UsageError: an augmentation does not suit the samples or the network.
    """
    if config.augment:
        suited = list_augmentations(blueprint)
        if not suited:
            text = f"--augment does not work with network '{blueprint.network}'"
            raise UsageError(text, "Remove it", code="option_unsuited")
        for name in config.augment:
            if name in AUGMENTATIONS.entries and name not in suited:
                text = f"--augment {name} is not for {MEDIA[blueprint.space.medium].many}"
                raise UsageError(text, f"Use {', '.join(suited)}", code="option_unsuited")
    if config.augment is not None:
        return config
    count = len(data.train)
    passes = config.num_steps * config.images_per_step / max(count, 1)
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
    settings = blueprint.config.to_dict()
    able = NETWORKS[name].full_rank(blueprint.config, blueprint.space).to_dict()
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
