"""One configuration from what was typed and read: flag, file, run directory or model, default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffuse_cli.config import TrainConfig, UNetConfig
from diffuse_cli.core.variances import LEARNED, channels_out
from diffuse_cli.errors import OutputError, UsageError, lookup
from diffuse_cli.options import flag_of, from_dict, options, parsed, read_toml, to_dict
from diffuse_cli.presets import PRESETS, choose, groups_at, network
from diffuse_cli.training.rundir import RunDirectory

BATCH = 64
"""Images a step where nothing says otherwise."""

FREE = {"steps", "data", "eval_every", "eval_images"}
"""Options that may differ on --resume though they are part of the configuration."""


def configure(typed: Mapping[str, Any], filed: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of what was typed and, under it, what a file holds.

    Below these come the run directory with --resume, the model of --init, and the named preset.

    Raises:
        UsageError: options that exclude each other, or --resume with one that differs from the
            run's.
        OutputError: --resume of a model file that has no run directory.
    """
    typed, filed = parsed(TrainConfig, typed), parsed(TrainConfig, filed or {})
    given = {**_under(typed, filed), **typed}
    from_dict(TrainConfig, {"data": "", **given})
    _check_exclusive(typed)
    run = RunDirectory(given.get("out", "model.safetensors"))
    if given.get("resume") and run.exists():
        return _together(_resumed(given, run))
    if given.get("resume") and run.model.exists():
        raise OutputError(
            f"{run.model} has no run directory to resume from",
            f"Start from its weights: --init {run.model} -o another.safetensors",
        )
    config = from_dict(TrainConfig, {**_below(given), **given})
    if "label_dropout" in typed and not config.classes:
        raise UsageError("--label-dropout goes with --classes", "Give both, or neither")
    if config.size and config.preset:
        network(
            config,
            config.preset,
            config.size,
            config.unet.get("channels", 3),
            out_channels=config.unet.get("out_channels"),
            num_classes=config.unet.get("num_classes", 0),
        )
    return _together(config)


def _together(config: TrainConfig) -> TrainConfig:
    """`config`, of which no option is without effect for want of another."""
    if config.eval_images is not None and config.eval_every is None:
        raise UsageError("--eval-images goes with --eval-every", "Give both, or neither")
    return config


def _check_exclusive(typed: Mapping[str, Any]) -> None:
    for one, other in (("steps", "minutes"), ("init", "preset"), ("schedule", "betas")):
        if one in typed and other in typed:
            raise UsageError(f"--{one} and --{other} exclude each other", "Leave one of them out")


def _under(typed: Mapping[str, Any], filed: Mapping[str, Any]) -> dict[str, Any]:
    """What a file gives under what was typed: a typed --preset, --size or --width brings its own
    network, a typed --variance its own loss and channels, typed --classes their number, a typed
    --loss its own weighting, typed --betas their number, and a typed --schedule ends the file's
    betas."""
    kept = dict(filed)
    unet = dict(kept.get("unet", {})) if isinstance(kept.get("unet", {}), Mapping) else None
    if unet and "preset" in typed and typed["preset"] != kept.get("preset"):
        unet = {}
        kept.pop("width", None)
    if unet and "width" in typed:
        if _groups_followed(unet, kept.get("preset")):
            del unet["groups"]
        unet = {k: v for k, v in unet.items() if _suits_width(k, v, typed["width"])}
    for name, follows in (("variance", "out_channels"), ("classes", "num_classes")):
        if unet and name in typed and typed[name] != kept.get(name):
            unet = {k: v for k, v in unet.items() if k != follows}
    if unet and "size" in typed:
        unet = {k: v for k, v in unet.items() if k not in ("size", "multipliers")}
    if unet is not None and "unet" in kept:
        kept["unet"] = unet
    before = str(kept.get("variance", "small"))
    if typed.get("variance", before) != before and kept.get("loss") == default_loss(before):
        del kept["loss"]
    if "loss" in typed and "weighting" not in typed:
        kept.pop("weighting", None)
    if "betas" in typed:
        kept.pop("num_timesteps", None)
    if "schedule" in typed:
        kept.pop("betas", None)
    return kept


def _groups_followed(unet: Mapping[str, Any], preset: Any) -> bool:
    """Whether the groups of a file's network are what its preset makes of its width."""
    width = unet.get("width")
    if not isinstance(width, int) or width < 1 or not isinstance(preset, str | None):
        return False  # what it is will be refused in its place
    return bool(unet.get("groups") == groups_at(width, preset))


def _suits_width(name: str, value: Any, width: Any) -> bool:
    """Whether a field of a network can stay beside another width: groups and heads that divide it
    can, and what does not follow from the width."""
    if name in ("groups", "heads", "head_width", "heads_up"):
        return not (isinstance(value, int) and isinstance(width, int) and value and width % value)
    return name != "width"


def _below(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that a model to start from, or a named preset, brings."""
    if given.get("init"):
        from diffuse_cli.modelfile import read_training

        return _under(given, read_training(given["init"]))
    if given.get("preset"):
        train = lookup(PRESETS, given["preset"], "--preset").train
        # The learning rate depends on the width, which `complete` knows.
        return _under(given, {k: v for k, v in train.items() if k != "lr"})
    return {}


def _resumed(given: Mapping[str, Any], run: RunDirectory) -> TrainConfig:
    """The run's own configuration, with the options that may change."""
    stored = from_dict(TrainConfig, read_toml(run.config), str(run.config))
    asked = from_dict(TrainConfig, {**_under(given, to_dict(stored)), **given})
    wanted: dict[str, Any] = {}
    for f, spec in options(TrainConfig):
        if f.name not in given:
            continue
        if spec.control or f.name in FREE:
            wanted[f.name] = given[f.name]
        else:
            _check_same(f, getattr(asked, f.name), getattr(stored, f.name))
    unet = stored.unet
    for name, value in given.get("unet", {}).items():
        if unet.get(name) != value:
            raise _differs(f"[unet] {name}", value, unet.get(name))
    return dataclasses.replace(stored, **wanted)


def _check_same(f: dataclasses.Field[Any], asked: Any, stored: Any) -> None:
    if asked != stored and (f.name, asked) != ("precision", "auto"):
        raise _differs(flag_of(f), asked, stored)


def _differs(name: str, typed: Any, stored: Any) -> UsageError:
    return UsageError(
        f"{name} {_plain(typed)} differs from the run's {_plain(stored)}",
        "Leave it out to go on, or start again with --overwrite",
    )


def _plain(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return "x".join(map(str, value)) if len(value) == 2 else f"({len(value)} numbers)"


def default_loss(variance: str) -> str:
    """The loss where none is given: a learned variance is learned from the bound."""
    return "hybrid" if variance in LEARNED else "simple"


def rate_at(preset: str, width: int | None, batch_size: int) -> float:
    """The learning rate of a preset at another width and batch size.

    An entry of a layer's output is a sum over its `width` inputs, and Adam moves each weight by
    about the learning rate whatever its gradient: so 1 / width moves the output alike at every
    width. It is the rule of muP for hidden layers (Yang et al. 2022, table 3), used here for all
    of them: a rule of thumb, which has not been measured.

    The noise of a gradient falls with the square root of the batch size, and so does what it adds
    to a step of Adam, of a size that does not: the rate goes with the root (Malladi et al. 2022).
    """
    own = PRESETS[preset]
    rate: float = own.train["lr"] * (batch_size / own.train.get("batch_size", BATCH)) ** 0.5
    return rate if width is None else rate * own.unet["width"] / width


def batched(config: TrainConfig, batch_size: int) -> TrainConfig:
    """`config`, of which the preset is known, with a batch size and the rate that goes with it."""
    assert config.preset is not None
    rate = config.lr
    if rate is None:
        rate = rate_at(config.preset, config.width, batch_size)
    return dataclasses.replace(config, batch_size=batch_size, lr=rate)


def complete(
    config: TrainConfig, size: tuple[int, int], channels: int, num_classes: int = 0
) -> TrainConfig:
    """`config` with everything decided that depends on the data and the machine, but for the batch
    size that --minutes leaves open, and the learning rate with it.

    Completing a complete configuration changes nothing.
    """
    from diffuse_cli.runtime import device_type, resolve_precision

    name = config.preset or choose(size, device_type())
    loss = config.loss or default_loss(config.variance)
    unet: UNetConfig = network(
        config,
        name,
        size,
        channels,
        out_channels=channels_out(config.variance, channels),
        num_classes=num_classes,
    )
    if config.batch_size or config.minutes is None:
        config = batched(dataclasses.replace(config, preset=name), config.batch_size or BATCH)
    return dataclasses.replace(
        config,
        preset=name,
        size=size,
        width=unet.width,
        unet=to_dict(unet),
        loss=loss,
        weighting=config.weighting or ("none" if loss == "vlb" else "min-snr"),
        precision=resolve_precision(config.precision),
    )


def for_model_file(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that a model file keeps: no paths, nothing of how it was run."""
    return to_dict(config, control=False, places=False)
