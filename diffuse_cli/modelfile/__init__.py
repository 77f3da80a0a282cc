"""The model file: safetensors, with all that rebuilds the model in its header.

The header's metadata has `format: pt`, the `modelspec.*` keys and `diffuse.config`, canonical
JSON. Nothing depends on when or where the file was written: two equal trainings give equal bytes.
Reading trusts nothing: the header is checked, and shapes are compared with those of the network
on the meta device, before a tensor is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffuse_cli import files, foreign, tensorfile
from diffuse_cli.config import TrainConfig
from diffuse_cli.config.training import from_file
from diffuse_cli.core import settings
from diffuse_cli.diffusion import Blueprint
from diffuse_cli.errors import DiffuseError, ModelFileError
from diffuse_cli.modelfile._description import (
    SAMPLING,
    Model,
    describe,
    described,
    rebuild,
    versions,
)
from diffuse_cli.options import from_dict
from diffuse_cli.presets import network_config

__all__ = ["RAW", "Model", "holds", "load", "read_metadata", "read_training", "save", "versions"]

RAW = "raw."
"""Prefix of the weights before averaging."""


# -- writing --------------------------------------------------------------------------------------


def save(path: Path, model: Model) -> None:
    """Write a model file, whole or not at all."""
    blueprint = model.blueprint
    metadata = {
        "format": "pt",
        "diffuse.config": json.dumps(describe(model), sort_keys=True, separators=(",", ":")),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"diffuse/{blueprint.network}",
        "modelspec.implementation": "diffuse",
        "modelspec.title": f"diffuse model, {model.step} steps",
        "modelspec.resolution": "x".join(map(str, reversed(blueprint.space.size))),
        "modelspec.prediction_type": blueprint.diffusion.target,
    }
    raw = {RAW + name: tensor for name, tensor in (model.raw or {}).items()}
    tensorfile.write(path, {**model.ema, **raw}, metadata)


# -- reading --------------------------------------------------------------------------------------


def load(path: str | Path) -> Model:
    """Read and check a model file.

    Raises:
        ModelFileError: it is missing, damaged, or not a model file of `diffuse`.
    """
    path = Path(path)
    with _rejecting(path), tensorfile.opened(path) as file:
        foreign.check_kind(file, path)
        header = tensorfile.read_header(file)
        if "diffuse.config" not in header.metadata:
            raise foreign.rejected(header.entries, path)
        model = rebuild(described(header))
        _check_shapes(model.blueprint, header.entries)
        tensors = tensorfile.read_tensors(file, header)
        _check_finite(tensors)
        own = {n: t for n, t in tensors.items() if not n.startswith(RAW)}
        raw = {n.removeprefix(RAW): t for n, t in tensors.items() if n.startswith(RAW)}
        return dataclasses.replace(model, ema=own, raw=raw or None)


def read_training(path: str | Path) -> dict[str, Any]:
    """The training configuration in a model file, with its network, for `--init`.

    Raises:
        ModelFileError: as in `load`, or it is not a configuration.
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
    """Whether the file at `path` already describes `model`, apart from `sampling`, which is written
    after the training."""
    try:
        with _rejecting(path), tensorfile.opened(path) as file:
            found = described(tensorfile.read_header(file))
            wanted = json.loads(json.dumps(describe(model)))
            return bool({**found, SAMPLING: None} == {**wanted, SAMPLING: None})
    except ModelFileError:
        return False


def read_metadata(path: Path) -> Mapping[str, str]:
    """The strings in a file's header, such as `modelspec.title`; untrusted.

    Raises:
        ModelFileError: it is not a safetensors file.
    """
    with _rejecting(path), tensorfile.opened(path) as file:
        return tensorfile.read_header(file).metadata


@contextlib.contextmanager
def _rejecting(path: Path) -> Iterator[None]:
    """Turn what a malformed file makes Python raise into a `ModelFileError` that names the file."""
    name = files.show(path)
    try:
        if path.is_dir():
            raise foreign.rejected_folder(path)
        yield
    except ModelFileError as error:
        named = error.message if name in error.message else f"{name}: {error.message}"
        raise ModelFileError(named, error.hint) from error
    except FileNotFoundError as error:
        raise ModelFileError(f"no such model file: {name}") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {name}: {error.strerror}") from error
    except (DiffuseError, *tensorfile.MALFORMED) as error:
        reason = files.brief(getattr(error, "message", error), 300)
        raise ModelFileError(f"{name} is not a valid model file: {reason}") from error


def _check_shapes(blueprint: Blueprint, entries: Mapping[str, tensorfile.Entry]) -> None:
    """Refuse tensors that are not those of the network, once or, with raw weights, twice."""
    expected = {name: f"F32 {list(shape)}" for name, shape in blueprint.shapes.items()}
    if any(name.startswith(RAW) for name in entries):
        expected |= {RAW + name: text for name, text in expected.items()}
    found = {name: f"{entry.dtype} {list(entry.shape)}" for name, entry in entries.items()}
    if wrong := tensorfile.misfit(expected, found):
        raise ModelFileError(f"its tensors do not fit its network: {wrong}")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinite weights; the extremes show them, without a mask."""
    bad = [
        name
        for name, tensor in tensors.items()
        if not all(math.isfinite(float(extreme)) for extreme in tensor.aminmax())
    ]
    if bad:
        raise ModelFileError(f"weights that are not numbers: {tensorfile.first(bad)}")
