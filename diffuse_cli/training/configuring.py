"""One configuration from what was typed and read: flag, file, run directory or model, default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffuse_cli.config import TrainConfig, UNetConfig
from diffuse_cli.errors import OutputError, UsageError, lookup
from diffuse_cli.options import Option, flag_of, from_dict, options, read_toml, to_dict
from diffuse_cli.presets import PRESETS, choose, network
from diffuse_cli.training.rundir import RunDirectory

FREE = {"steps", "data"}
"""Options that may differ on --resume though they are part of the configuration."""


def configure(typed: Mapping[str, Any], filed: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of what was typed and, under it, what a file holds.

    Below these come the run directory with --resume, the model of --init, and the named preset.

    Raises:
        UsageError: options that exclude each other, or --resume with one that differs from the
            run's.
        OutputError: --resume of a model file that has no run directory.
    """
    given = {**_under(typed, filed or {}), **typed}
    from_dict(TrainConfig, {"data": "", **given})
    _check_exclusive(typed)
    run = RunDirectory(given.get("out", "model.safetensors"))
    if given.get("resume") and run.exists():
        return _resumed(given, run)
    if given.get("resume") and run.model.exists():
        raise OutputError(
            f"{run.model} has no run directory to resume from",
            f"Start from its weights: --init {run.model} -o another.safetensors",
        )
    config = from_dict(TrainConfig, {**_below(given), **given})
    if config.size and config.preset:
        network(config, config.preset, config.size, config.unet.get("channels", 3))
    return config


def _check_exclusive(typed: Mapping[str, Any]) -> None:
    for one, other in (("steps", "minutes"), ("init", "preset")):
        if one in typed and other in typed:
            raise UsageError(f"--{one} and --{other} exclude each other", "Leave one of them out")


def _under(typed: Mapping[str, Any], filed: Mapping[str, Any]) -> dict[str, Any]:
    """What a file gives under what was typed: a typed --preset or --size brings its own network,
    and a typed --loss its own weighting."""
    kept = dict(filed)
    unet = dict(kept.get("unet", {})) if isinstance(kept.get("unet", {}), Mapping) else None
    if unet and "preset" in typed and typed["preset"] != kept.get("preset"):
        unet = {}
    if unet and "size" in typed:
        unet = {k: v for k, v in unet.items() if k not in ("size", "multipliers")}
    if unet is not None and "unet" in kept:
        kept["unet"] = unet
    if "loss" in typed and "weighting" not in typed:
        kept.pop("weighting", None)
    return kept


def _below(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults that a model to start from, or a named preset, brings."""
    if given.get("init"):
        from diffuse_cli.modelfile import read_training

        return _under(given, read_training(given["init"]))
    if given.get("preset"):
        return dict(lookup(PRESETS, given["preset"], "--preset").train)
    return {}


def _resumed(given: Mapping[str, Any], run: RunDirectory) -> TrainConfig:
    """The run's own configuration, with the options that may change."""
    stored = from_dict(TrainConfig, read_toml(run.config), str(run.config))
    from_dict(TrainConfig, {**to_dict(stored), **given})
    wanted: dict[str, Any] = {}
    for f, spec in options(TrainConfig):
        if f.name not in given:
            continue
        if spec.control or f.name in FREE:
            wanted[f.name] = given[f.name]
        else:
            _check_same(f, spec, given[f.name], getattr(stored, f.name))
    unet = stored.unet
    for name, value in given.get("unet", {}).items():
        if unet.get(name) != value:
            raise _differs(f"[unet] {name}", value, unet.get(name))
    return dataclasses.replace(stored, **wanted)


def _check_same(f: dataclasses.Field[Any], spec: Option, typed: Any, stored: Any) -> None:
    value = spec.parse(typed) if spec.parse else typed
    if value != stored and (f.name, value) != ("precision", "auto"):
        raise _differs(flag_of(f), value, stored)


def _differs(name: str, typed: Any, stored: Any) -> UsageError:
    return UsageError(
        f"{name} {_plain(typed)} differs from the run's {_plain(stored)}",
        "Leave it out to go on, or start again with --overwrite",
    )


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def complete(config: TrainConfig, size: tuple[int, int], channels: int) -> TrainConfig:
    """`config` with everything decided that depends on the data and the machine.

    Completing a complete configuration changes nothing.
    """
    from diffuse_cli.runtime import device_type, resolve_precision

    name = config.preset or choose(size, device_type())
    unet: UNetConfig = network(config, name, size, channels)
    return dataclasses.replace(
        config,
        preset=name,
        size=size,
        unet=to_dict(unet),
        lr=config.lr if config.lr is not None else PRESETS[name].train["lr"],
        weighting=config.weighting or ("none" if config.loss == "vlb" else "min-snr"),
        precision=resolve_precision(config.precision),
    )


def for_model_file(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that a model file keeps: no paths, nothing of how it was run."""
    return to_dict(config, control=False, places=False)
