"""The one model file: safetensors, with everything needed to rebuild the model in its header.

The header's metadata has `format: pt`, the `modelspec.*` keys and `diffuse.config`, canonical
JSON. Nothing in the file depends on when or where it was written, so that two equal trainings
give equal bytes. Reading trusts nothing: the header is checked, and shapes are compared on the
meta device, before anything is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from diffuse_cli import __version__, files, foreign, tensorfile
from diffuse_cli.config import DiffusionConfig, SamplerChoice, TrainConfig
from diffuse_cli.config.training import DATA_FACTS, from_file
from diffuse_cli.core import settings
from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.samplers import SAMPLERS
from diffuse_cli.core.space import Space
from diffuse_cli.core.variances import channels_out
from diffuse_cli.diffusion import Blueprint
from diffuse_cli.errors import DiffuseError, ModelFileError, lookup
from diffuse_cli.options import from_dict, to_dict
from diffuse_cli.parsing import parse_color, parse_size
from diffuse_cli.presets import network_config

VERSION = 2
"""Of the description in the header. 1 had no number, and one table for network and data."""

SAMPLING = "sampling"
"""The key of the recommendation in `diffuse.config`; a file without one has no such key."""

RAW = "raw."
"""Prefix of the weights before averaging, where they are kept."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model file holds.

    Attributes:
        blueprint: space, network, conditions and process.
        ema, raw: the averaged weights by name, and those before averaging or None.
        step: optimizer steps behind the weights.
        data: fingerprint, number of samples and the held-out rule of the training data, and its
            class names where the model was not told them.
        training: the configuration of the training.
        sampling: what it is best drawn with, where `tune` has found that out.
        versions: of `diffuse` and torch, as a file says them; writing fills in its own.
    """

    blueprint: Blueprint
    ema: Mapping[str, Tensor]
    raw: Mapping[str, Tensor] | None = None
    step: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sampling: SamplerChoice | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the training data, which a conditional model has as labels."""
        return self.blueprint.conditions.classes or tuple(self.data.get("classes", ()))

    def network(self, weights: str = "ema") -> nn.Module:
        """The network with its averaged or raw weights.

        Raises:
            ModelFileError: raw weights of a file that has none.
        """
        tensors = lookup({"ema": self.ema, "raw": self.raw}, weights, "--weights")
        if tensors is None:
            raise ModelFileError(
                "the model file has no raw weights", "Train with --keep-raw to have them"
            )
        with torch.device("meta"):
            net = self.blueprint.build()
        net.load_state_dict(dict(tensors), assign=True)
        return net.eval().requires_grad_(False)


# -- writing --------------------------------------------------------------------------------------


def _describe(model: Model) -> dict[str, Any]:
    """Everything but the tensors, as plain values."""
    blueprint = model.blueprint
    return {
        "version": VERSION,
        "space": settings.to_dict(blueprint.space),
        "network": {"name": blueprint.network, **settings.to_dict(blueprint.config)},
        "conditions": settings.to_dict(blueprint.conditions),
        "diffusion": to_dict(blueprint.diffusion),
        "step": model.step,
        "data": dict(model.data),
        "training": dict(model.training),
        **({SAMPLING: to_dict(model.sampling)} if model.sampling else {}),
        "versions": {"diffuse": __version__, "torch": torch.__version__.split("+")[0]},
    }


def save(path: Path, model: Model) -> None:
    """Write the model file, whole or not at all."""
    blueprint = model.blueprint
    metadata = {
        "format": "pt",
        "diffuse.config": json.dumps(_describe(model), sort_keys=True, separators=(",", ":")),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"diffuse/{blueprint.network}",
        "modelspec.implementation": "diffuse",
        "modelspec.title": f"diffuse model, {model.step} steps",
        "modelspec.resolution": "x".join(map(str, reversed(blueprint.space.size))),
        "modelspec.prediction_type": blueprint.diffusion.target,
    }
    tensors = dict(model.ema)
    for name, tensor in (model.raw or {}).items():
        tensors[RAW + name] = tensor
    tensorfile.write(path, tensors, metadata)


# -- reading --------------------------------------------------------------------------------------


def load(path: str | Path) -> Model:
    """Read and check a model file.

    Raises:
        ModelFileError: it is missing, or not a whole and sane model file of `diffuse`.
    """
    path = Path(path)
    with _rejecting(path), tensorfile.opened(path) as file:
        header = _header(file, path)
        model = _rebuild(_described(header))
        _check_shapes(model.blueprint, header.entries)
        tensors = tensorfile.read_tensors(file, header)
        _check_finite(tensors)
        own = {n: t for n, t in tensors.items() if not n.startswith(RAW)}
        raw = {n.removeprefix(RAW): t for n, t in tensors.items() if n.startswith(RAW)}
        return dataclasses.replace(model, ema=own, raw=raw or None)


def read_training(path: str | Path) -> dict[str, Any]:
    """The training configuration in a model file's header, with its network, for `--init`.

    Raises:
        ModelFileError: as `load`, or it is not a configuration.
    """
    path = Path(path)
    model = load(path)
    blueprint = model.blueprint
    with _rejecting(path):
        training = from_file(model.training)
        if training.get("architecture"):
            found = network_config(training["network"], training["architecture"])
            if (training["network"], found) != (blueprint.network, blueprint.config):
                raise ModelFileError("its training had another network")
        training |= {
            "network": blueprint.network,
            "architecture": settings.to_dict(blueprint.config),
        }
        from_dict(TrainConfig, {"data": "", **training})
    return training


def holds(path: Path, model: Model) -> bool:
    """Whether the file at `path` already describes `model`: network, data, training and step.

    A recommendation is no part of that: it is written into the file after the training.
    """
    try:
        with _rejecting(path), tensorfile.opened(path) as file:
            found = _described(tensorfile.read_header(file))
            wanted = json.loads(json.dumps(_describe(model)))
            return bool({**found, SAMPLING: None} == {**wanted, SAMPLING: None})
    except ModelFileError:
        return False


def read_metadata(path: Path) -> Mapping[str, str]:
    """The strings in a file's header, such as `modelspec.title`; they may say anything.

    Raises:
        ModelFileError: it is not a file of tensors.
    """
    with _rejecting(path), tensorfile.opened(path) as file:
        return tensorfile.read_header(file).metadata


@contextlib.contextmanager
def _rejecting(path: Path) -> Iterator[None]:
    """Turn what a malformed file makes Python say into a `ModelFileError` that names the file."""
    name = files.show(path)
    try:
        if path.is_dir():
            raise foreign.rejected_folder(path)
        yield
    except ModelFileError as error:
        named = error.message if name in error.message else f"{name}: {error.message}"
        raise ModelFileError(named, error.hint) from error
    except DiffuseError as error:
        reason = files.show(error.message)[:300]
        raise ModelFileError(f"{name} is not a valid model file: {reason}") from error
    except FileNotFoundError as error:
        raise ModelFileError(f"no such model file: {name}") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {name}: {error.strerror}") from error
    except _MALFORMED as error:
        reason = files.show(" ".join(str(error).split()))[:300]
        raise ModelFileError(f"{name} is not a valid model file: {reason}") from error


_MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def _header(file: IO[bytes], path: Path) -> tensorfile.Header:
    """The header of a model file of `diffuse`.

    Raises:
        ModelFileError: it is of another kind, named where that is known.
        ValueError: it is not a file of tensors.
    """
    foreign.check_kind(file, path)
    header = tensorfile.read_header(file)
    if "diffuse.config" not in header.metadata:
        raise foreign.rejected(header.entries, path)
    return header


def _described(header: tensorfile.Header) -> dict[str, Any]:
    """The description in a header, as the newest version writes it.

    Raises:
        ValueError: it is none.
        ModelFileError: of a version that is not known here.
    """
    found = tensorfile.parse(header.metadata["diffuse.config"].encode())
    if not isinstance(found, dict):
        raise ValueError("its diffuse.config is not an object")
    version = found.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError("its version is not a number")
    if version > VERSION:
        made = dict(found.get("versions", {})).get("diffuse", "a newer one")
        raise ModelFileError(
            f"it is of version {version}, written by diffuse {files.show(str(made))[:50]}; this is "
            f"diffuse {__version__}, which reads versions up to {VERSION}",
            "Install a newer diffuse",
        )
    return _upgraded(found) if version == 1 else found


def _upgraded(old: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a version 1 file, whose network held size, channels and classes."""
    unet = _settled(old["unet"])
    network = {k: v for k, v in unet.items() if k not in DATA_FACTS}
    classes, data = list(old["classes"]), dict(old["data"])
    conditional = unet.get("num_classes", 0)
    if conditional not in (0, len(classes)):
        raise ValueError(f"a network of {conditional} classes with {len(classes)} names")
    out = unet.get("out_channels", unet["channels"])
    needed = channels_out(old["diffusion"]["variance"], unet["channels"])
    if out != needed:
        raise ValueError(f"{out} channels out, not {needed}")
    if classes and not conditional:
        data["classes"] = classes
    return {
        **{k: v for k, v in old.items() if k not in ("unet", "classes")},
        "version": VERSION,
        "space": {"channels": unet["channels"], "size": list(parse_size(unet["size"]))},
        "network": {"name": "unet", **network},
        "conditions": {"classes": classes if conditional else []},
        "data": data,
    }


def _rebuild(described: Mapping[str, Any]) -> Model:
    """The model without its tensors."""
    network = _settled(described["network"])
    name = network.pop("name")
    blueprint = Blueprint(
        space=settings.from_dict(Space, _settled(described["space"])),
        network=name,
        config=network_config(name, network),
        conditions=settings.from_dict(Conditions, _settled(described["conditions"])),
        diffusion=from_dict(DiffusionConfig, _settled(described["diffusion"])),
    )
    timesteps = blueprint.denoiser(None).process.num_timesteps
    step, data = described["step"], dict(described["data"])
    if not isinstance(step, int) or not isinstance(name, str):
        raise ValueError("step or network are of the wrong type")
    if not all(isinstance(name, str) for name in data.get("classes", ())):
        raise ValueError("class names that are no names")
    parse_color(data.get("background", "white"))
    sampling = None
    if SAMPLING in described:
        sampling = _recommended(described[SAMPLING], blueprint.conditions, timesteps)
    return Model(
        blueprint=blueprint,
        ema={},
        step=step,
        data=data,
        training=_settled(described["training"]),
        sampling=sampling,
        versions=dict(described["versions"]),
    )


def _recommended(
    values: Mapping[str, Any], conditions: Conditions, timesteps: int
) -> SamplerChoice:
    """A recommendation that the model can be drawn with.

    Raises:
        DiffuseError, ValueError: it is none.
    """
    setting = from_dict(SamplerChoice, _settled(values))
    lookup(SAMPLERS, setting.sampler, "sampling")
    if setting.steps > timesteps:
        raise ValueError(f"{setting.steps} steps are recommended, of {timesteps} timesteps")
    if (setting.guidance is None) != (not conditions.classes):
        raise ValueError("guidance is recommended for a network without classes, or none with them")
    return setting


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as `to_dict` writes them: a null would be a default, and a path would be read."""
    if any(value is None for value in values.values()) or isinstance(values.get("betas"), str):
        raise ModelFileError("settings that are not those of a configuration")
    return dict(values)


def _check_shapes(blueprint: Blueprint, entries: Mapping[str, tensorfile.Entry]) -> None:
    """Names, shapes and types of the tensors are those of the network, none more and none less.

    Raises:
        ModelFileError: with the first five that are not.
    """
    expected = dict(blueprint.shapes)
    if any(name.startswith(RAW) for name in entries):
        expected |= {RAW + name: shape for name, shape in expected.items()}
    problems = [f"{name} is missing" for name in expected if name not in entries]
    problems += [
        f"{files.show(name)[:200]} is not of this network"
        for name in entries
        if name not in expected
    ]
    for name in expected.keys() & entries.keys():
        entry = entries[name]
        if entry.dtype != "F32" or entry.shape != expected[name]:
            found, wanted = list(entry.shape), list(expected[name])
            problems.append(f"{name} is {entry.dtype} {found}, not F32 {wanted}")
    if problems:
        raise ModelFileError(
            f"its tensors do not fit its network: {'; '.join(sorted(problems)[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        )


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """No weight is NaN or infinite. Extremes tell, without a mask as large as a tensor.

    Raises:
        ModelFileError: with the first five that have one.
    """
    bad = sorted(
        name
        for name, tensor in tensors.items()
        if not all(math.isfinite(float(extreme)) for extreme in tensor.aminmax())
    )
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ModelFileError(f"weights that are not numbers: {', '.join(bad[:5])}{more}")
