"""Convert a model to its description in the header of a model file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffuse_cli.config.parsers import parse_color, parse_size
from diffuse_cli.config.presets import network_config
from diffuse_cli.config.sample_options import GAUSSIAN, SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.train_options import DATA_FACTS
from diffuse_cli.core import (
    SAMPLERS,
    Conditions,
    Space,
    data_gaussian,
    denoising_errors,
    output_channels,
)
from diffuse_cli.media import check, check_fit
from diffuse_cli.models import tensor_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.system import ModelFileError, __version__, files, lookup

VERSION = 12
"""Newest version of the description.

A file has the oldest version that can describe its model, so that an older `diffuse` reads it if
possible. Version 1 has no number, and one table for network and data. Later versions add:

- 3: weak weights or learned timesteps.
- 4: a conditioning image.
- 5: metadata columns.
- 6: a layout, a transform, 16-bit images or the scale of the conditioning image.
- 7: a rate or a teacher.
- 8: a recommended initial noise distribution.
- 9: limits of levels.
- 10: a Wiener filter.
- 11: recommended noise levels of guidance.
- 12: a column of vectors.
"""

SAMPLING, WEAK_KEY, DISTILLED = "sampling", "weak", "distilled"
"""Keys of the recommended setting, the weak weights and the teacher in `diffuse.config`."""


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """Content of a model file.

    Attributes:
        blueprint: the space, network, conditions and process.
        ema, raw: the EMA weights by name, and the weights before averaging or None.
        weak: the early EMA weights, for autoguidance, or None.
        step, weak_step: the number of optimizer steps, and the number behind `weak`.
        data: the fingerprint, number of samples and held-out rule of the training data.
        training: the training configuration.
        sampling: the sampling setting that `train`, `tune` or `distill` recommends.
        distilled: for a distilled model, whose estimate of x_0 is the endpoint of its path: the
            teacher's hash, and the guidance scale that the model follows, if any.
        errors: the errors of x_0 with the EMA weights, if they were measured.
        versions: the versions of `diffuse` and torch that wrote the file. Only set by reading.
    """

    blueprint: Blueprint
    ema: Mapping[str, Tensor]
    raw: Mapping[str, Tensor] | None = None
    weak: Mapping[str, Tensor] | None = None
    step: int = 0
    weak_step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplerChoice | None = None
    distilled: Mapping[str, Any] | None = None
    errors: denoising_errors.DenoisingErrors | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that the model is conditioned on."""
        return self.blueprint.conditions.classes

    @property
    def parameters(self) -> int:
        """The number of parameters of the network."""
        return sum(tensor.numel() for tensor in self.ema.values())

    @property
    def always_conditioned(self) -> bool:
        """Whether training never dropped the class and the columns of a sample."""
        return self.training.get("label_dropout") == 0

    @property
    def has_unconditional(self) -> bool:
        """Whether training dropped every condition at times, see `Conditions`."""
        return self.blueprint.conditions.has_unconditional(self.training.get("label_dropout"))

    def tensors(self, weights: str = "ema") -> Mapping[str, Tensor]:
        """Return the EMA, raw or weak weights by name.

        Raises:
            ModelFileError: the file does not have these weights.
        """
        every = {"ema": self.ema, "raw": self.raw, "weak": self.weak}
        tensors = lookup(every, weights, "--weights")
        if tensors is None:
            hint = f"Train with --keep-{weights} to have them"
            text = f"the model file has no {weights} weights"
            raise ModelFileError(text, hint, code="model_lacks", option="--weights")
        return tensors

    def network(self, weights: str = "ema") -> nn.Module:
        """Return the network with its EMA, raw or weak weights. Raises as `tensors`."""
        tensors = self.tensors(weights)
        net = self.blueprint.build_on_meta()
        net.load_state_dict(dict(tensors), assign=True)
        return net.eval().requires_grad_(False)


def versions() -> dict[str, str]:
    """Return the versions of the running `diffuse` and torch."""
    return {"diffuse": __version__, "torch": torch.__version__.split("+")[0]}


def describe_model(model: StoredModel) -> dict[str, Any]:
    """Return everything except the tensors as plain values."""
    blueprint, gaussian = model.blueprint, model.blueprint.gaussian
    return {
        "version": _version(model),
        "space": blueprint.space.to_dict(),
        "network": {"name": blueprint.network, **blueprint.config.to_dict()},
        "conditions": blueprint.conditions.to_dict(),
        "diffusion": blueprint.diffusion.to_dict(),
        "step": model.step,
        "data": {**model.data, **({data_gaussian.NAME: gaussian.plain} if gaussian else {})},
        "training": dict(model.training),
        **({SAMPLING: model.sampling.to_dict()} if model.sampling else {}),
        **({WEAK_KEY: {"step": model.weak_step}} if model.weak is not None else {}),
        **({DISTILLED: dict(model.distilled)} if model.distilled is not None else {}),
        **({denoising_errors.NAME: model.errors.plain} if model.errors else {}),
        "versions": versions(),
    }


def _version(model: StoredModel) -> int:
    """Return the oldest version that can describe the model."""
    space, sampling = model.blueprint.space, model.sampling
    given, table = model.blueprint.conditions.given, model.blueprint.conditions.table
    deep = space.medium == "image" and space.levels != 256
    needed = {
        12: (table and table.vector, given and given.labels, space.quantities or None),
        11: (sampling and sampling.guidance_interval,),
        10: (model.blueprint.wiener or None,),
        9: (space.limits, given and given.limits),
        8: (sampling and sampling.start,),
        7: (space.rate, model.distilled),
        6: (space.layout, space.transform, deep or None, given and given.mean),
        5: (table or None,),
        4: (given,),
        3: (sampling and sampling.times, model.weak),
    }
    newer = (version for version, needs in needed.items() if any(n is not None for n in needs))
    return next(newer, 2)


def parse_description(header: tensor_file.Header) -> dict[str, Any]:
    """Return the description in a header, with version 1 upgraded to version 2.

    Raises:
        ModelFileError: the version is newer than `VERSION`.
        ValueError: the description is malformed.
    """
    description = tensor_file.parse_json(header.metadata["diffuse.config"].encode())
    if not isinstance(description, dict):
        raise ValueError("its diffuse.config is not an object")
    version = description.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError("its version is not a number")
    if version > VERSION:
        writer = str(dict(description.get("versions", {})).get("diffuse", "a newer one"))
        raise ModelFileError(
            f"it has version {version}, written by diffuse {files.show(writer, 50)}, but diffuse "
            f"{__version__} only reads versions up to {VERSION}",
            "Install a newer diffuse",
            code="model_unsupported",
        )
    return _upgrade_description(description) if version == 1 else description


def _upgrade_description(old: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade a description of version 1, in which the network held size, channels and classes."""
    unet = _check_settings(old["unet"])
    network = {k: v for k, v in unet.items() if k not in DATA_FACTS}
    classes = list(old["classes"])
    conditional = unet.get("num_classes", 0)
    if conditional not in (0, len(classes)):
        raise ValueError(f"a network of {conditional} classes with {len(classes)} names")
    out = unet.get("out_channels", unet["channels"])
    needed = output_channels(old["diffusion"]["variance"], unet["channels"])
    if out != needed:
        raise ValueError(f"{out} channels out, not {needed}")
    return {
        **{k: v for k, v in old.items() if k not in ("unet", "classes")},
        "version": 2,
        "space": {"channels": unet["channels"], "size": list(parse_size(unet["size"]))},
        "network": {"name": "unet", **network},
        "conditions": {"classes": classes if conditional else []},
        "data": dict(old["data"]),
    }


def rebuild_model(described: Mapping[str, Any]) -> StoredModel:
    """Return the model without its tensors. `weak` is empty if the file has weak weights."""
    network = _check_settings(described["network"])
    name, data = network.pop("name"), dict(described["data"])
    space = Space.from_dict(_check_settings(described["space"]))
    if (gaussian := data.pop(data_gaussian.NAME, None)) is not None:
        gaussian = data_gaussian.read(gaussian, space.channels, space.size)
    blueprint = Blueprint(
        space=space,
        network=name,
        config=network_config(name, network),
        conditions=Conditions.from_dict(_check_settings(described["conditions"])),
        diffusion=DiffusionConfig.from_dict(_check_settings(described["diffusion"])),
        wiener=gaussian is not None and gaussian.bands is not None,
        gaussian=gaussian,
    )
    check(blueprint.space)
    Conditioner.from_blueprint(blueprint)
    timesteps = blueprint.denoiser(None).process.num_timesteps
    step = described["step"]
    data.pop("classes", None)  # folder names in older files of unconditional models
    weak_step = described[WEAK_KEY]["step"] if WEAK_KEY in described else None
    if not isinstance(step, int) or not isinstance(name, str):
        raise ValueError("step or network are of the wrong type")
    if not isinstance(weak_step, int | None):
        raise ValueError("the step of the weak weights is of the wrong type")
    parse_color(data.get("background", "white"))
    check_fit(blueprint.space.medium, data.get("fit", "crop"))
    sampling = None
    if SAMPLING in described:
        sampling = _read_choice(described[SAMPLING], blueprint.conditions, timesteps)
        if sampling.weak_guidance is not None and weak_step is None:
            raise ValueError("weak guidance is recommended, but the file has no weak weights")
        if sampling.start == GAUSSIAN and (blueprint.gaussian is None or blueprint.conditions):
            raise ValueError("a start is recommended that the model does not support")
    errors = None
    if denoising_errors.NAME in described:
        errors = denoising_errors.read(described[denoising_errors.NAME])
    return StoredModel(
        blueprint=blueprint,
        ema={},
        weak=None if weak_step is None else {},
        step=step,
        weak_step=weak_step,
        data=data,
        training=_check_settings(described["training"]),
        sampling=sampling,
        distilled=_check_teacher(described.get(DISTILLED)),
        errors=errors,
        versions=dict(described["versions"]),
    )


def _check_teacher(values: Any) -> dict[str, Any] | None:
    """Return the checked facts of the teacher in a description."""
    if values is None:
        return None
    facts = dict(values)
    guidance = facts.get("guidance", 1)
    if not isinstance(facts.get("teacher"), str) or not isinstance(guidance, int | float):
        raise ValueError("the teacher of the distilled model is of the wrong type")
    return facts


def _read_choice(
    values: Mapping[str, Any], conditions: Conditions, timesteps: int
) -> SamplerChoice:
    """Return a recommended setting, checked to suit the model."""
    setting = SamplerChoice.from_dict(_check_settings(values))
    lookup(SAMPLERS, setting.sampler, "sampling")
    if setting.steps > timesteps:
        raise ValueError(f"{setting.steps} steps are recommended for {timesteps} timesteps")
    if setting.times and setting.times[0] > timesteps - 1:
        raise ValueError(f"time {setting.times[0]:g} is recommended for {timesteps} timesteps")
    if setting.start not in (None, GAUSSIAN):
        raise ValueError("an unknown start is recommended")
    if (setting.guidance is None) != (not conditions):
        text = "guidance is recommended for an unconditional network, or none for a conditional one"
        raise ValueError(text)
    return setting


def _check_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, checked to hold no null, which would be a default, and no path of betas."""
    if any(value is None for value in values.values()) or isinstance(values.get("betas"), str):
        raise ModelFileError("its settings are not a configuration", code="model_damaged")
    return dict(values)
