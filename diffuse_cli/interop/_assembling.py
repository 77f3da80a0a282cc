"""From what foreign files say, what a preset knows and what was typed, one checked model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.config import ConvertConfig, DiffusionConfig, TrainConfig
from diffuse_cli.config.model import TIMESTEPS
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.networks import unet as unets
from diffuse_cli.core.settings import from_dict as checked
from diffuse_cli.core.settings import to_dict as plain
from diffuse_cli.core.space import Space
from diffuse_cli.core.variances import channels_out
from diffuse_cli.diffusion import Blueprint, make_denoiser, make_process
from diffuse_cli.errors import ModelFileError, UsageError, translated
from diffuse_cli.files import show
from diffuse_cli.interop import Foreign, Net
from diffuse_cli.interop._source import Source, brief
from diffuse_cli.modelfile import Model
from diffuse_cli.options import from_dict, options, to_dict
from diffuse_cli.parsing import Size
from diffuse_cli.presets import PRESETS
from diffuse_cli.training.configuring import for_model_file

PROCESS = tuple(f.name for f, _ in options(DiffusionConfig))
SHAPE = ("width", "time_width", "multipliers", "blocks", "scale_shift", "resblock_updown")
"""Fields of a network that its tensors show, beside the levels with attention."""

OPTIONAL = ("heads", "head_width", "heads_up", "time_width")

NAMES_BYTES = 10_000_000
"""A file of class names is not read further than this."""


def assemble(foreign: Foreign, source: Source, config: ConvertConfig) -> Model:
    """The model, every tensor of which has its place, its shape and its numbers.

    Raises:
        ModelFileError: tensors that are not those of the network, or a process that cannot be.
        UsageError: options or a preset that do not suit the source, or that are needed.
    """
    unet = foreign.unet
    if unet.space.channels not in (1, 3):
        raise ModelFileError(
            f"{source.name} takes {unet.space.channels} channels, not the 1 or 3 of an image",
            "Networks of latents, and those that enlarge another image, are not known",
        )
    if config.preset and (wrong := unlike(config.preset, unet)):
        raise UsageError(f"--preset {config.preset} is not the network of {source.name}: {wrong}")
    diffusion = settle(foreign, source, config)
    return Model(
        blueprint=Blueprint(
            space=unet.space,
            network="unet",
            config=unet.config,
            conditions=Conditions(classes=class_names(config, unet.num_classes)),
            diffusion=diffusion,
        ),
        ema=fitted(foreign, source),
        training=training(unet, diffusion, config.preset),
    )


def network(where: Path, config: ConvertConfig, size: Size, fields: Mapping[str, Any]) -> Net:
    """The network that the file `where` says, for images of `size`: settings of the network, with
    `channels`, `out_channels` and `num_classes`.

    One head is said as such: left out, it would be filled in where a training begins with it.

    Raises:
        ModelFileError: no such network can be.
        UsageError: its levels do not halve the --size that was typed.
    """
    if fields.get("heads") is None and fields.get("head_width") is None:
        fields = {**fields, "heads": 1}
    for name, value in fields.items():
        if value is None and name not in OPTIONAL:
            raise ModelFileError(f"{show(where)} does not say {name}")
    try:
        return net(fields, size)
    except InvalidArgument as error:
        factor = 2 ** (len(fields["multipliers"]) - 1)
        if config.size and any(side % factor for side in config.size):
            raise translated(error) from error
        raise ModelFileError(f"{show(where)}: {brief(error)}") from error


def net(fields: Mapping[str, Any], size: Size) -> Net:
    """A network by its settings, `channels`, `out_channels` and `num_classes`.

    Raises:
        InvalidArgument: no such network can be.
    """
    data = {name: fields[name] for name in ("channels", "out_channels", "num_classes")}
    settings = {name: value for name, value in fields.items() if name not in data}
    space = Space(channels=data["channels"], size=size)
    found = Net(
        config=checked(unets.Config, settings),
        space=space,
        out_channels=data["out_channels"],
        num_classes=data["num_classes"],
    )
    unets.check(found.config, space)
    return found


def attention_at(size: Size, attends: list[bool]) -> tuple[int, ...]:
    """The resolutions with attention, from the levels that have it."""
    return tuple(min(size) >> i for i, attend in enumerate(attends) if attend)


def unlike(preset: str, unet: Net) -> str:
    """In what the network of a preset is unlike one of which the tensors are known; empty if in
    nothing.

    The levels with attention are compared, not their resolutions: it may be of another size.
    """
    own, attends = PRESETS[preset].settings, unet.attends
    defaults = {f.name: f.default for f in dataclasses.fields(unets.Config)}
    for name in SHAPE:
        expected, found = own.get(name, defaults[name]), getattr(unet.config, name)
        if expected != found:
            return f"{name} is {found} there, not {expected}"
    at = own["attention"]
    side = max(at) << attends.index(True) if at and any(attends) else 0
    if bool(at) != any(attends) or [side >> i in at for i in range(len(attends))] != attends:
        return "attention is at other levels"
    return ""


# -- the process ----------------------------------------------------------------------------------


def settle(foreign: Foreign, source: Source, config: ConvertConfig) -> DiffusionConfig:
    """The process: as typed, else as the source says, else as the preset does; eps where none says
    what is predicted.

    Raises:
        UsageError: none of them says the schedule or the timesteps, or what was typed cannot be.
        ModelFileError: what the source says cannot be.
    """
    typed = {name: getattr(config, name, None) for name in PROCESS}
    typed = {name: value for name, value in typed.items() if value is not None}
    said = _layered({"target": "eps"}, _published(config.preset), foreign.diffusion, typed)
    if "betas" not in said and not {"schedule", "num_timesteps"} <= said.keys():
        missing = "number of timesteps" if "schedule" in said else "noise schedule"
        raise UsageError(
            f"{source.name} does not say its {missing}",
            "Give --schedule and --num-timesteps, or --betas, or a --preset",
        )
    try:
        diffusion = from_dict(DiffusionConfig, said)
        make_denoiser(None, diffusion, make_process(diffusion))
    except UsageError as error:
        if typed:
            raise
        raise ModelFileError(f"{source.name}: {error.message}", error.hint) from error
    unet = foreign.unet
    out, needed = unet.out_channels, channels_out(diffusion.variance, unet.space.channels)
    if out != needed:
        text = f"variance '{diffusion.variance}' needs {needed} channels out, not {out}"
        if "variance" in typed:
            raise UsageError(f"--{text} as in {source.name}", "Leave --variance out")
        raise ModelFileError(f"{source.name}: {text}")
    return diffusion


def _published(preset: str | None) -> dict[str, Any]:
    """What a preset says of the process; T is 1000 where it says nothing, as in a training."""
    if preset is None:
        return {}
    said = {name: value for name, value in PRESETS[preset].train.items() if name in PROCESS}
    return {"num_timesteps": TIMESTEPS, **said}


def _layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Each layer over those before it; betas and a schedule stand in each other's place."""
    result: dict[str, Any] = {}
    for layer in layers:
        if "betas" in layer:
            result.pop("schedule", None)
            result.pop("num_timesteps", None)
        if "schedule" in layer:
            result.pop("betas", None)
        result |= layer
    return result


# -- the tensors ----------------------------------------------------------------------------------


def fitted(foreign: Foreign, source: Source) -> dict[str, Tensor]:
    """The tensors in float32, each in its place.

    The label embedding gains a row of zeros for "none", which no other program has: with it the
    network is the one without a label.

    Raises:
        ModelFileError: tensors that are missing, too many, of another shape, or not finite.
    """
    tensors, unet = dict(foreign.tensors), foreign.unet
    name = "class_embedding.weight"
    if unet.num_classes and name in tensors and tensors[name].ndim == 2:
        rows = tensors[name].to(torch.float32)
        tensors[name] = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    shapes = unet.shapes

    def their(name: str) -> str:
        return brief(foreign.theirs.get(name, name))

    problems = [f"{their(name)} is missing" for name in shapes if name not in tensors]
    problems += [f"{brief(name)} is not of this network" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        if (found := tuple(tensors[name].shape)) != shapes[name]:
            problems.append(f"{their(name)} is {found}, not {shapes[name]}")
    if problems:
        raise ModelFileError(
            f"{source.name} does not fit its network: {'; '.join(sorted(set(problems))[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    done = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    bad = sorted(their(name) for name, tensor in done.items() if not bool(tensor.isfinite().all()))
    if bad:
        raise ModelFileError(
            f"{source.name} has weights that are not numbers: {', '.join(bad[:5])}"
        )
    return done


# -- what goes beside them ------------------------------------------------------------------------


def class_names(config: ConvertConfig, count: int) -> tuple[str, ...]:
    """The names of the classes: those in a file, one a line, or their numbers.

    Raises:
        UsageError: the file cannot be read, or has not one name for each class.
    """
    if config.class_names is None:
        return tuple(map(str, range(count)))
    flag = f"--class-names {show(config.class_names)}"
    try:
        with Path(config.class_names).open("rb") as file:
            lines = file.read(NAMES_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{flag}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{flag} is not text: {error}") from error
    names = tuple(filter(None, map(str.strip, lines)))
    if len(names) != count:
        raise UsageError(f"{flag} has {len(names):,} names for {count:,} classes")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"{flag} has '{show(twice[0])}' twice", "Give each class its own name")
    return names


def training(unet: Net, diffusion: DiffusionConfig, preset: str | None) -> dict[str, Any]:
    """The configuration that `train --init` goes on from: the preset's, without its learning rate,
    which follows from width and batch size."""
    recipe = dict(PRESETS[preset].train) if preset else {}
    if recipe.get("variance") != diffusion.variance:
        recipe.pop("loss", None)
    recipe = {name: recipe[name] for name in recipe if name != "lr" and name not in PROCESS}
    labels = {"classes": True, "label_dropout": 0.0} if unet.num_classes else {}
    given = {
        **recipe,
        **to_dict(diffusion),
        **labels,
        "size": unet.space.size,
        "channels": unet.space.channels,
        "preset": preset,
        "width": unet.config.width,
        "network": "unet",
        "architecture": plain(unet.config),
    }
    return for_model_file(from_dict(TrainConfig, {"data": "", **given}))
