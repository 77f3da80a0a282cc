"""One checked model from foreign files, a preset and typed options."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.commands.convert.importers._foreign_files import ForeignSource
from diffuse_cli.config import options
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.parsers import Size
from diffuse_cli.config.presets import PRESETS
from diffuse_cli.config.shared_options import TIMESTEPS, DiffusionConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Conditions, InvalidArgument, Space, output_channels
from diffuse_cli.core.networks import unet as unets
from diffuse_cli.models import blueprint, tensor_file
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.system import ModelFileError, Notice, UsageError, shorten, show, to_usage_error
from diffuse_cli.training.configuration import to_model_options

PROCESS = tuple(f.name for f, _ in options.option_fields(DiffusionConfig))
SHAPE = ("width", "time_width", "multipliers", "blocks", "scale_shift", "resblock_updown")
"""Fields of a network that its tensors show, besides the levels with attention."""

OPTIONAL = ("heads", "head_width", "heads_up", "time_width")

NAMES_BYTES = 10_000_000
"""The most that is read of a file of class names."""


def assemble(foreign: ForeignModel, source: ForeignSource, config: ConvertConfig) -> StoredModel:
    """Return the model, with every tensor checked. Raises what `convert` does."""
    unet = foreign.unet
    if unet.space.channels not in (1, 3):
        text = f"{source.name} takes {unet.space.channels} channels, not the 1 or 3 of an image"
        hint = "Latent and super-resolution networks are not supported"
        raise ModelFileError(text, hint, code="model_unsupported", path=source.path)
    if config.preset and (wrong := find_difference(config.preset, unet)):
        text = f"--preset {config.preset} is not the network of {source.name}: {wrong}"
        raise UsageError(text, code="option_unsuited")
    diffusion = resolve_process(foreign, source, config)
    return StoredModel(
        blueprint=blueprint.Blueprint(
            space=unet.space,
            network="unet",
            config=unet.config,
            conditions=Conditions(classes=class_names(config, unet.num_classes, foreign.classes)),
            diffusion=diffusion,
        ),
        ema=fit_tensors(foreign, source),
        training=make_training_options(unet, diffusion, config.preset, foreign.label_dropout),
    )


def read_net(where: Path, config: ConvertConfig, size: Size, fields: Mapping[str, Any]) -> Net:
    """Return the network that the file `where` describes, for images of `size`; `fields` as in
    `make_net`.

    An invalid one is the file's fault, unless its levels do not halve the typed --size.
    """
    if fields.get("heads") is None and fields.get("head_width") is None:
        # Left out, a training that begins with it would fill it in.
        fields = {**fields, "heads": 1}
    for name, value in fields.items():
        if value is None and name not in OPTIONAL:
            text = f"{show(where)} does not say {name}"
            raise ModelFileError(text, code="model_damaged", path=where)
    try:
        return make_net(fields, size)
    except InvalidArgument as error:
        factor = 2 ** (len(fields["multipliers"]) - 1)
        if config.size and any(side % factor for side in config.size):
            raise to_usage_error(error) from error
        text = f"{show(where)}: {shorten(error)}"
        raise ModelFileError(text, code="model_unsupported", path=where) from error


def make_net(fields: Mapping[str, Any], size: Size) -> Net:
    """Return a network by its settings, `channels`, `out_channels` and `num_classes`. An
    `InvalidArgument` if there is none."""
    fields = dict(fields)
    space = Space(channels=fields.pop("channels"), size=size)
    out_channels, num_classes = (fields.pop(name) for name in ("out_channels", "num_classes"))
    if not all(type(count) is int and count >= 0 for count in (out_channels, num_classes)):
        raise InvalidArgument(f"it has {out_channels!r} channels out and {num_classes!r} classes")
    config = unets.Config.from_dict(fields)
    config.check(space)
    return Net(config=config, space=space, out_channels=out_channels, num_classes=num_classes)


def attention_at(size: Size, attends: list[bool]) -> tuple[int, ...]:
    """Return the resolutions with attention, from the levels that have it."""
    return tuple(min(size) >> i for i, attend in enumerate(attends) if attend)


def find_difference(preset: str, unet: Net) -> str:
    """Return the difference of a network to a preset's, as far as tensors show it. Empty if none.

    The levels with attention are compared, not their resolutions: the image size may differ.
    """
    expected, attends = PRESETS[preset].settings, unet.attends
    defaults = {f.name: f.default for f in dataclasses.fields(unets.Config)}
    for name in SHAPE:
        value, actual = expected.get(name, defaults[name]), getattr(unet.config, name)
        if value != actual:
            return f"{name} is {actual} there, not {value}"
    at = expected["attention"]
    side = max(at) << attends.index(True) if at and any(attends) else 0
    if bool(at) != any(attends) or [side >> i in at for i in range(len(attends))] != attends:
        return "attention is at other levels"
    return ""


# -- the process ----------------------------------------------------------------------------------


def resolve_process(
    foreign: ForeignModel, source: ForeignSource, config: ConvertConfig
) -> DiffusionConfig:
    """Return the process: typed options before the source, before the preset. The default target is
    eps.

    An invalid one is the fault of what was typed, if anything was, else of the source.
    """
    typed = {name: getattr(config, name, None) for name in PROCESS}
    typed = {name: value for name, value in typed.items() if value is not None}
    preset = {}
    if config.preset:
        recipe = PRESETS[config.preset].train
        preset = {"num_timesteps": TIMESTEPS, **{n: v for n, v in recipe.items() if n in PROCESS}}
    fields = _merge_processes({"target": "eps"}, preset, foreign.diffusion, typed)
    if "betas" not in fields and not {"schedule", "num_timesteps"} <= fields.keys():
        missing = "number of timesteps" if "schedule" in fields else "noise schedule"
        message = f"{source.name} does not say its {missing}"
        hint = "Pass --schedule and --num-timesteps, or --betas, or a --preset"
        option = "--num-timesteps" if "schedule" in fields else "--schedule"
        raise UsageError(message, hint, code="missing_argument", option=option)
    try:
        diffusion = DiffusionConfig.from_dict(fields)
        blueprint.make_denoiser(None, diffusion)
    except UsageError as error:
        if typed:
            raise
        text = f"{source.name}: {error.message}"
        raise ModelFileError(
            text, error.hint, code="model_unsupported", path=source.path
        ) from error
    unet = foreign.unet
    out, needed = unet.out_channels, output_channels(diffusion.variance, unet.space.channels)
    if out != needed:
        text = f"variance '{diffusion.variance}' needs {needed} channels out, not {out}"
        if "variance" in typed:
            text = f"--{text} as in {source.name}"
            raise UsageError(text, "Leave --variance out", code="option_unsuited")
        raise ModelFileError(f"{source.name}: {text}", path=source.path)
    return diffusion


def _merge_processes(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers override earlier ones. Betas and a schedule replace each other.

    A schedule keeps the number of the betas.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        if "betas" in layer:
            result.pop("schedule", None)
            result.pop("num_timesteps", None)
        if "schedule" in layer and "betas" in result:
            result["num_timesteps"] = len(result.pop("betas"))
        result |= layer
    return result


# -- the tensors ----------------------------------------------------------------------------------


def fit_tensors(foreign: ForeignModel, source: ForeignSource) -> dict[str, Tensor]:
    """Return the tensors in float32, none missing or too many, each of its shape and finite.

    The label embedding gains a row of zeros for "none", which other programs do not have: it gives
    the network without a label. A model that left here has one already.
    """
    tensors, unet = dict(foreign.tensors), foreign.unet
    name = "class_embedding.weight"
    if unet.num_classes and not foreign.classes and name in tensors and tensors[name].ndim == 2:
        rows = tensors[name].to(torch.float32)
        tensors[name] = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])

    def their(name: str) -> str:
        return shorten(foreign.source_names.get(name, name))

    shapes = {name: str(shape) for name, shape in unet.shapes.items()}
    actual_shapes = {name: str(tuple(tensor.shape)) for name, tensor in tensors.items()}
    if wrong := tensor_file.describe_mismatch(shapes, actual_shapes, their):
        text = f"{source.name} does not fit its network: {wrong}"
        raise ModelFileError(text, code="model_damaged", path=source.path)
    weights = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    bad = [their(name) for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ModelFileError(
            f"{source.name} has weights that are not numbers: {tensor_file.format_first(bad)}",
            code="model_damaged",
            path=source.path,
        )
    return weights


# -- class names and training ---------------------------------------------------------------------


def class_names(config: ConvertConfig, count: int, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of the classes: those in a file, one a line, or `names`, or their
    numbers."""
    if config.class_names is None:
        return names or tuple(map(str, range(count)))
    path, flag = config.class_names, f"--class-names {show(config.class_names)}"
    try:
        with Path(path).open("rb") as file:
            lines = file.read(NAMES_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        text = f"{flag}: {error.strerror}"
        raise UsageError(text, code="metadata_unreadable", path=path) from error
    except ValueError as error:
        text = f"{flag} is not text: {error}"
        raise UsageError(text, code="metadata_unreadable", path=path) from error
    listed_names = tuple(filter(None, map(str.strip, lines)))
    if len(listed_names) != count:
        text = f"{flag} has {len(listed_names):,} names for {count:,} classes"
        raise UsageError(text, code="metadata_mismatch", path=path)
    if twice := [name for name, times in Counter(listed_names).items() if times > 1]:
        text, hint = f"{flag} has '{show(twice[0])}' twice", "Give each class its own name"
        raise UsageError(text, hint, code="metadata_unreadable", path=path)
    return listed_names


def make_training_options(
    unet: Net, diffusion: DiffusionConfig, preset: str | None, label_dropout: float = 0.0
) -> dict[str, Any]:
    """Return the configuration for `train --init`: the preset's, without its learning rate, which
    follows from width and batch size."""
    recipe = dict(PRESETS[preset].train) if preset else {}
    if recipe.get("variance") != diffusion.variance:
        recipe.pop("loss", None)
    recipe = {name: recipe[name] for name in recipe if name != "lr" and name not in PROCESS}
    labels = {"classes": True, "label_dropout": label_dropout} if unet.num_classes else {}
    given = {
        **recipe,
        **diffusion.to_dict(),
        **labels,
        "size": unet.space.size,
        "channels": unet.space.channels,
        "preset": preset,
        "width": unet.config.width,
        "network": "unet",
        "architecture": unet.config.to_dict(),
    }
    return to_model_options(TrainConfig.from_dict({"data": "", **given}))


@dataclass(frozen=True, kw_only=True)
class Net:
    """A U-Net of another program: its settings, and their consequences for the data."""

    config: unets.Config
    space: Space
    out_channels: int
    num_classes: int

    @property
    def attends(self) -> list[bool]:
        """Which levels have attention."""
        return self.config.attends(self.space.size)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor by its name here."""
        conditions = Conditions(classes=tuple(map(str, range(self.num_classes))))
        return blueprint.shapes("unet", self.config, self.space, conditions, self.out_channels)


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """Another program's model, in this program's terms.

    Attributes:
        unet: the network.
        diffusion: fields of `DiffusionConfig`. A preset or the user gives the others.
        tensors: by the names of `UNet`. The label embedding lacks the row for "none", unless
            `classes` are there. Tensors that do not belong to the network keep their names.
        classes: the names of classes, if the label embedding has a row for "none".
        label_dropout: how often training took that row.
        source_names: names in the file by names of `UNet`, where they differ, for messages.
        notices: what to tell the user.
    """

    unet: Net
    diffusion: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()
    label_dropout: float = 0.0
    source_names: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
