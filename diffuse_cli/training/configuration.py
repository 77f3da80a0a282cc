"""Training configuration, merged from its layers.

Each layer holds the options of one source: flags, file, run directory, model, preset, defaults.
`merge_layers` lays one over another: options of the upper layer hold, and `RULES` drop the options
of the lower layer that belong to a replaced value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from diffuse_cli.config import options, presets, train_options
from diffuse_cli.config.task_options import check_degradation, is_degradation
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import NETWORKS
from diffuse_cli.core.augmentations import AUGMENTATIONS
from diffuse_cli.core.losses import OF_LEARNED
from diffuse_cli.core.parameterization import LEARNED
from diffuse_cli.core.registry import suggest
from diffuse_cli.data.metadata_columns import parse_column_names, split_vector_file
from diffuse_cli.system import OutputError, UsageError, files, finish, flag, lookup
from diffuse_cli.system.processes import rank
from diffuse_cli.training.run_directory import RunDirectory

AUTOMATIC = (("precision", "auto"), ("augment", None))
"""Options with the value that means the run's own on --resume."""

FREE = {"steps", "data", "device", "compile", "preview_every", "eval_every", "eval_images"}
"""Options that may change on --resume, in addition to control options."""


class Layer(dict[str, Any]):
    """Options from one source, by name.

    Raises:
        UsageError: a value cannot be parsed.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        super().__init__(options.parse_options(TrainConfig, given or {}))

    def without(self, *names: str) -> Layer:
        """Return the layer without these options."""
        return Layer({k: v for k, v in self.items() if k not in names})

    @property
    def network(self) -> Mapping[str, Any]:
        """Settings of the network. Empty if they are not a table, which is refused later."""
        settings = self.get("architecture")
        return settings if isinstance(settings, Mapping) else {}

    def config(self) -> TrainConfig:
        """Return the layer's options over the defaults.

        Raises:
            UsageError: the data is missing, an option is unknown, or options exclude each other.
        """
        return TrainConfig.from_dict(self)


def merge_layers(*layers: Layer) -> Layer:
    """Merge layers, the uppermost first."""
    below = Layer()
    for above in reversed(layers):
        for rule in RULES:
            below = rule(above, below)
        below = Layer({**below, **above})
    return below


Rule = Callable[[Layer, Layer], Layer]
"""Function of (above, below) that returns the layer below without replaced options."""


def default_loss(variance: str) -> str:
    """Return the default loss: a learned variance is trained with the variational bound."""
    return "hybrid" if variance in LEARNED else "simple"


def make_rule(name: str, *dropped: str) -> Rule:
    """Make a rule: if the upper layer sets `name`, drop these options from the lower layer."""
    return lambda above, below: below.without(*dropped) if name in above else below


def make_network_rule(name: str, *dropped: str) -> Rule:
    """Make a rule: if two layers set a different `name`, drop the network of the lower layer."""

    def rule(above: Layer, below: Layer) -> Layer:
        if name in above and name in below and above.get(name) != below.get(name):
            return below.without("architecture", "width", *dropped)
        return below

    return rule


def drop_default_loss(above: Layer, below: Layer) -> Layer:
    """Drop a loss that was the default for another variance."""
    before = str(below.get("variance", "small"))
    if above.get("variance", before) != before and below.get("loss") == default_loss(before):
        return below.without("loss")
    return below


def drop_network_settings(above: Layer, below: Layer) -> Layer:
    """Drop network settings that do not suit another width or size.

    A network that has weights already keeps the levels or patches that depend on the size.
    """
    network = NETWORKS.get(presets.resolve_network(below.get("network"), below.get("preset")))
    settings, sizes = below.network, (above.get("size"), below.get("size"))
    if network is None or not settings:  # no such network is refused later
        return below
    if "width" in above:
        preset = presets.PRESETS.get(str(below.get("preset")))
        published = preset is not None and preset.published
        settings = network.at_width(settings, above.get("width"), published)
    if "init" not in above and None not in sizes and sizes[0] != sizes[1]:
        settings = {k: v for k, v in settings.items() if k not in network.OF_SIZE}
    return Layer({**below, "architecture": settings})


RULES: tuple[Rule, ...] = (
    make_network_rule("preset", "network"),
    make_network_rule("network", "preset"),
    drop_network_settings,
    drop_default_loss,
    make_rule("loss", "weighting"),
    make_rule("betas", "num_timesteps"),
    make_rule("schedule", "betas"),
    make_rule("steps", "minutes"),
    make_rule("minutes", "steps"),
)


def configure(typed: Mapping[str, Any], filed: Mapping[str, Any] | None = None) -> TrainConfig:
    """Merge the options of the command line with the options of a file.

    Below these come the run directory with --resume, the model of --init, and the named preset.

    Raises:
        UsageError: options exclude each other, or an option of --resume differs from the run's.
        OutputError: there is no run to resume.
    """
    flags, file = Layer(typed), Layer(train_options.from_file(filed or {}))
    given = merge_layers(flags, file)
    Layer({"data": "", **given}).config()
    for first, second in (("steps", "minutes"), ("init", "preset"), ("schedule", "betas")):
        if first in flags and second in flags:
            raise options.conflict_error(f"--{first}", f"--{second}", "Remove one of them")
    run = RunDirectory(given.get("out", "model.safetensors"))
    if given.get("resume") or given.get("auto_resume"):
        if run.exists():
            return _check_options(_resume_config(given, run))
        _check_new_run(run, bool(given.get("auto_resume")))
    config = merge_layers(given, _read_base(given)).config()
    for layer, name, conditions in (
        (flags, "label_dropout", ("classes", "condition_on")),  # files have its default
        (given, "given_dropout", ("given",)),
        (given, "given_noise", ("given",)),
        (given, "given_kind", ("given",)),
    ):
        if name in layer and not any(getattr(config, condition) for condition in conditions):
            either = " or ".join(map(flag, conditions))
            raise options.needs_error(flag(name), either, "Set both, or neither")
    parse_column_names(split_vector_file(config.condition_on or ())[0])
    if config.given and is_degradation(config.given):
        check_degradation(config.given, typed="given" in flags)
    if config.loss in OF_LEARNED and config.variance not in LEARNED:
        raise UsageError(
            f"--loss {config.loss} trains a learned variance, and --variance {config.variance} is "
            "fixed",
            "Use --variance learned, or --loss simple",
            code="option_needs",
        )
    if config.distills and not config.init:
        text = f"--loss {config.loss} needs a trained model"
        raise UsageError(text, "Run diffuse distill MODEL DATA", code="option_needs")
    unweighted = config.weighting == "none" or config.loss in train_options.WEIGHTED
    if config.timestep_draw == "weight" and unweighted:
        text = "--timestep-draw weight needs the weights of --weighting, and there are none"
        raise UsageError(text, "Remove it, or set --weighting", code="option_needs")
    return _check_options(config)


def _check_options(config: TrainConfig) -> TrainConfig:
    """Return `config`, or refuse an option that has no effect without another.

    Raises:
        UsageError: an option needs another one, an augmentation is unknown, or --stop-at is beyond
            the run's end.
    """
    if config.eval_every is None:
        if config.eval_images is not None:
            raise options.needs_error("--eval-images", "--eval-every", "Set both, or neither")
        if config.keep == "best":
            raise options.needs_error("--keep best", "--eval-every", "Set both, or neither")
    for name in config.augment or ():
        lookup(AUGMENTATIONS, name, "--augment")
    if config.minutes is None and config.stop_at is not None and config.stop_at > config.num_steps:
        text = f"--stop-at {config.stop_at} is beyond the {config.num_steps} steps of the run"
        raise UsageError(text, "Remove it, or set more --steps", code="invalid_value")
    return config


def _check_new_run(run: RunDirectory, auto: bool) -> None:
    """Refuse to start a run with --resume, or, with --auto-resume, over an existing model.

    Raises:
        BusyError: another process has just started the run.
        OutputError: there is no run to resume.
    """
    if run.path.exists() and rank() == 0:  # which may have made and locked it just now
        with run.hold_lock():
            pass
    if run.model.exists():
        hint = f"Start from its weights: --init {files.show(run.model)} -o another.safetensors"
        text = f"{files.show(run.model)} has no run directory to resume from"
        raise OutputError(text, hint, code="run_missing", path=run.path)
    if auto:
        return
    runs = sorted(p.parent for p in run.path.parent.glob("*.run/config.toml"))
    models = [files.show(path.with_suffix(run.model.suffix)) for path in runs]
    similar = suggest(files.show(run.model), models) if models else ""
    similar += " " if similar.endswith("?") else ". " * bool(similar)
    text = f"there is no run {files.show(run.path)} to resume"
    hint = f"{similar}To start a run, leave out --resume, or use --auto-resume"
    raise OutputError(text, hint, code="run_missing", path=run.path)


def _read_base(given: Layer) -> Layer:
    """Return the options of the model of --init, or else of the named preset."""
    if given.get("init"):
        from diffuse_cli.models import model_file

        base = model_file.training_options(finish(model_file.find(given["init"], weights=False)))
        # They depend on the device, the memory, the length of the run or the data.
        excluded = ["accumulation", "augment", "compile", "precision", "steps"]
        # Another training does not repeat the distillation.
        if base.get("loss") == train_options.CONSISTENCY:
            excluded += ["loss", "weighting", "timestep_draw", "keep_weak", "lr", "batch_size"]
            excluded += ["teacher_guidance"]
        model = Layer(base).without(*excluded)
        batch = given.get("batch_size")
        if batch and given.get("lr") is None and {"lr", "batch_size"} <= model.keys():
            model["lr"] = presets.scale_to_batch(model["lr"], model["batch_size"], batch)
        size, model_size = given.get("size"), model.get("size")
        if size is not None and model_size is not None:
            network = presets.network_config(model["network"], model.network)
            resized = NETWORKS[model["network"]].resized(network, model_size, size)
            model["architecture"] = resized.to_dict()
        return model
    if name := given.get("preset") or presets.first_preset(given.get("network")):
        train = lookup(presets.PRESETS, name, "--preset").train
        # The learning rate depends on the width, which `complete_config` knows.
        return Layer(train).without("lr")
    return Layer()


def _resume_config(given: Layer, run: RunDirectory) -> TrainConfig:
    """Return the configuration of the stored run, with the options that may change."""
    values = train_options.from_file(options.read_toml(run.config, "the run's"))
    stored = TrainConfig.from_dict(values, str(run.config))
    config = merge_layers(given, Layer(stored.to_dict())).config()
    changes: dict[str, Any] = {}
    for f, spec in options.option_fields(TrainConfig):
        if f.name not in given:
            continue
        value, stored_value = getattr(config, f.name), getattr(stored, f.name)
        more_parts = f.name == "accumulation" and value > stored_value
        checked_later = _is_checked_later(f.name, value, stored)
        if spec.control or f.name in FREE or more_parts or checked_later:
            changes[f.name] = given.get(f.name)
        elif value != stored_value and not _means_stored(f.name, value, stored_value):
            raise _difference_error(options.field_flag(f), value, stored_value)
    if "steps" in given and "minutes" not in given:  # of a run that began by --minutes
        changes["minutes"] = None
    for name, value in given.network.items():
        stored_value = stored.architecture.get(name)
        if (list(value) if isinstance(value, tuple) else value) != stored_value:
            table = f"[{stored.network or train_options.NETWORK}] {name}"
            raise _difference_error(table, value, stored_value)
    return dataclasses.replace(stored, **changes)


def _means_stored(name: str, value: Any, stored_value: Any) -> bool:
    """Whether a typed value stands for the run's own on --resume.

    A run computes its batch in more parts than asked for if its memory is too small. Equal sides
    fit any number of dimensions.
    """
    if name == "size":
        return len({*value, *stored_value}) == 1
    if name == "transform":
        return (value, stored_value) == ("none", None)
    return (name, value) in AUTOMATIC or (name == "accumulation" and value < stored_value)


def _is_checked_later(name: str, value: Any, stored: TrainConfig) -> bool:
    """Whether an option names files, which are compared by their content."""
    if name == "given":
        return not any(path is None or is_degradation(path) for path in (value, stored.given))
    if name == "condition_on":
        columns = value or (), stored.condition_on or ()
        return len({split_vector_file(part)[0] for part in columns}) == 1
    return name == "init" and stored.distills


def _difference_error(name: str, typed: Any, stored: Any) -> UsageError:
    text = f"{name} {_format_value(typed)} differs from the run's {_format_value(stored)}"
    hint = "Remove it to resume, or replace the run with --overwrite"
    return UsageError(text, hint, code="run_differs")


def _format_value(value: Any) -> str:
    if not isinstance(value, tuple):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if all(isinstance(part, str) for part in value):
        return ",".join(value) or "none"
    return "x".join(map(str, value)) if len(value) <= 3 else f"({len(value)} numbers)"


def to_model_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that a model file keeps, without paths and control options."""
    columns = config.condition_on and split_vector_file(config.condition_on)[0]
    config = dataclasses.replace(config, architecture={}, condition_on=columns)
    return train_options.to_file(config, control=False, places=False)
