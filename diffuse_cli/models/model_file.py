"""The model file: safetensors with a header that describes the whole model.

The header's metadata has `format: pt`, the `modelspec.*` keys and `diffuse.config`, canonical JSON.
The file does not depend on the time or place of writing: two equal training runs give equal bytes.
Readers trust no file. They check the header, and compare shapes with the network on the meta
device, before a tensor is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.config import train_options
from diffuse_cli.config.options import option_fields
from diffuse_cli.core import settings
from diffuse_cli.models import model_header, tensor_file
from diffuse_cli.models.model_header import StoredModel as StoredModel
from diffuse_cli.models.model_header import versions as versions
from diffuse_cli.system import (
    DiffuseError,
    ModelFileError,
    Notice,
    Work,
    file_types,
    files,
    finish,
    run_reader,
)
from diffuse_cli.system.descriptors import open_regular_file
from diffuse_cli.system.hub_models import fetch_model

RAW, WEAK = "raw.", "weak."
"""Prefixes of the weights before averaging, and of the early EMA weights."""

Weights = Mapping[str, Tensor]


def save(path: Path, model: StoredModel) -> None:
    """Write a model file, whole or not at all."""
    tensor_file.write(path, merge_weights(model.ema, model.raw, model.weak), metadata(model))


def merge_weights(ema: Weights, raw: Weights | None = None, weak: Weights | None = None) -> Weights:
    """Return all weights of a model file under their names in the file."""
    kinds = (("", ema), (RAW, raw or {}), (WEAK, weak or {}))
    return {prefix + name: tensor for prefix, weights in kinds for name, tensor in weights.items()}


def split_weights(tensors: Weights) -> tuple[Weights, Weights, Weights]:
    """Split the weights of a model file into EMA, raw and weak weights, empty if it has none."""
    kinds: dict[str, dict[str, Tensor]] = {"": {}, RAW: {}, WEAK: {}}
    for name, tensor in tensors.items():
        prefix = next((p for p in (RAW, WEAK) if name.startswith(p)), "")
        kinds[prefix][name.removeprefix(prefix)] = tensor
    return kinds[""], kinds[RAW], kinds[WEAK]


def metadata(model: StoredModel) -> dict[str, str]:
    """Return the metadata that make a file of EMA weights a model file."""
    blueprint, description = model.blueprint, model_header.describe_model(model)
    return {
        "format": "pt",
        "diffuse.config": json.dumps(description, sort_keys=True, separators=(",", ":")),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"diffuse/{blueprint.network}",
        "modelspec.implementation": "diffuse",
        "modelspec.title": f"diffuse model, {model.step} steps",
        "modelspec.resolution": "x".join(map(str, reversed(blueprint.space.size))),
        "modelspec.prediction_type": blueprint.diffusion.target,
    }


@dataclass(frozen=True)
class ModelFile:
    """Model and the file that it was read from. The title is untrusted.

    The hash is empty if only the header was read.
    """

    path: Path
    model: StoredModel
    title: str
    size_bytes: int
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return the content as plain values. Escape its texts: they are untrusted."""
        model, blueprint = self.model, self.model.blueprint
        conditions = blueprint.conditions
        return {
            "kind": "model",
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "parameters": model.parameters,
            "raw": model.raw is not None,
            "weak": model.weak_step,
            "title": self.title,
            "step": model.step,
            "classes": conditions.classes,
            "data": model.data,
            "training": model.training,
            "sampling": model.sampling.to_dict() if model.sampling else None,
            "distilled": model.distilled,
            "versions": model.versions,
            "space": blueprint.space.to_dict(),
            **({"given": conditions.given.to_dict()} if conditions.given else {}),
            **({"columns": conditions.table.to_dict()["columns"]} if conditions.table else {}),
            "network": {"name": blueprint.network, **blueprint.config.to_dict()},
            "diffusion": blueprint.diffusion.to_dict(),
        }

    def training_config(self) -> dict[str, Any]:
        """Return the training configuration as for `train --config`, without paths.

        Raises:
            ModelFileError: as `training_options`.
        """
        training = training_options(self)
        config = train_options.TrainConfig.from_dict({"data": "", **training})
        fields = train_options.to_file(config, control=False, places=False)
        # A degradation, but not a path to paired images.
        return {**({"given": training["given"]} if "given" in training else {}), **fields}


def find(path: str | Path, *, weights: bool = True) -> Work[ModelFile]:
    """Read and check the model at a path: a model file, local or on the hub, a checkpoint or a run.

    In a run directory, also of a running training, it is the newest model, which a notice names.
    Without `weights` it has no tensors and no hash: only the header is read, and a damaged tensor
    is not noticed.

    Raises:
        ModelFileError: the model is missing, damaged, or not a model of `diffuse`.
    """
    given, tried = run_reader.name_path((yield from fetch_model(path))), set[Path]()
    failed: ModelFileError | None = None
    run = run_reader.find_run(given)
    if run is None:
        return _read_model(given, weights)
    # Listed again for each model: the training may save and remove checkpoints meanwhile.
    while fresh := [file for file in _models_of(given, run) if file not in tried]:
        tried.add(file := fresh[0])
        try:
            sums = weights and file.name == run_reader.AVERAGE
            if sums and (fault := run_reader.find_damage(file.parent, file.name)):
                text = f"{files.show(file.parent)} is damaged ({fault})"
                raise ModelFileError(text, code="model_damaged", path=file.parent)
            model_file = _read_model(file, weights)
        except ModelFileError as error:
            if file.exists():
                failed = failed or error
                yield Notice(f"{error.message}: trying the one before", warning=True)
            continue
        where = file.parent if file.name == run_reader.AVERAGE else file
        yield Notice(f"the model of step {model_file.model.step:,}: {files.show(where)}")
        return model_file
    raise failed or ModelFileError(
        f"{files.show(given)} has no complete checkpoint yet",
        "Wait for the first preview",
        code="checkpoint_missing",
        path=given,
    )


def _models_of(given: Path, run: Path) -> list[Path]:
    """Return the models of a checkpoint or, newest first, of a run."""
    if given != run:
        return [given / run_reader.AVERAGE]
    checkpoints = run_reader.list_checkpoints(run / run_reader.CHECKPOINTS)
    models = [checkpoint / run_reader.AVERAGE for checkpoint in checkpoints]
    finished = run_reader.model_path(run)
    newest = run_reader.checkpoint_step(checkpoints[0]) if checkpoints else -math.inf
    if run.suffix == ".run" and finished.is_file() and _step(finished) >= newest:
        models.insert(0, finished)
    return models


def _step(path: Path) -> float:
    """Return the step of a model file, or infinity if damaged, so that it is tried and named."""
    with (
        contextlib.suppress(ModelFileError),
        _translate_errors(path),
        open_regular_file(path) as file,
    ):
        return float(model_header.parse_description(tensor_file.read_header(file))["step"])
    return math.inf


def load(path: str | Path, *, weights: bool = True) -> StoredModel:
    """Return the model at a path, as `find` finds it."""
    return finish(find(path, weights=weights)).model


def _read_model(path: Path, weights: bool) -> ModelFile:
    """Read and check a model file, or only its header. It is opened only once."""
    with _translate_errors(path), open_regular_file(path) as file:
        file_types.check_kind(file, path)
        header = tensor_file.read_header(file)
        if "diffuse.config" not in header.metadata:
            if run_reader.find_run(path.parent):
                raise ModelFileError(
                    f"{files.show(path)} is a part of a checkpoint without a model's description",
                    "Pass the run directory; if an older diffuse wrote it, resume the run first",
                )
            raise file_types.foreign_error(header.entries, path)
        model = model_header.rebuild_model(model_header.parse_description(header))
        _check_shapes(model, header.entries)
        tensors = tensor_file.read_tensors(file, header) if weights else {}
        _check_finite(tensors)
        ema, raw, weak = split_weights(tensors)
        file.seek(0)
        return ModelFile(
            path,
            dataclasses.replace(model, ema=ema, raw=raw or None, weak=weak or None),
            title=header.metadata.get("modelspec.title", ""),
            size_bytes=os.fstat(file.fileno()).st_size,
            sha256=hashlib.file_digest(file, "sha256").hexdigest() if weights else "",
        )


def training_options(model_file: ModelFile) -> dict[str, Any]:
    """Return the training configuration of a model, with its network, for `--init`.

    Files may come from strangers, so they cannot set paths and control options.

    Raises:
        ModelFileError: the configuration is invalid.
    """
    blueprint = model_file.model.blueprint
    with _translate_errors(model_file.path):
        fields = option_fields(train_options.TrainConfig)
        omitted = {f.name for f, spec in fields if spec.control or spec.place}
        names = settings.fields_by_name(train_options.TrainConfig).keys() - omitted
        stored = train_options.from_file(model_file.model.training)
        training = {key: value for key, value in stored.items() if key in names}
        training["network"] = blueprint.network
        training["wiener"] = blueprint.wiener
        training["architecture"] = blueprint.config.to_dict()
        if (given := blueprint.conditions.given) and not given.is_paired:
            training["given"] = given.what
        train_options.TrainConfig.from_dict({"data": "", **training})
    return training


def has_model(path: Path, model: StoredModel) -> bool:
    """Whether the file at `path` already describes `model`, except for `sampling` and versions.

    `sampling` may be written after training, and decides the version of the file, too.
    """
    try:
        with _translate_errors(path), open_regular_file(path) as file:
            description = model_header.parse_description(tensor_file.read_header(file))
            expected = json.loads(json.dumps(model_header.describe_model(model)))
            ignored = dict.fromkeys((model_header.SAMPLING, "version", "versions"))
            return bool({**description, **ignored} == {**expected, **ignored})
    except ModelFileError:
        return False


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Turn errors from a malformed file into a `ModelFileError` that names the file."""
    name = files.show(path)
    try:
        if path.is_dir():
            hint = file_types.convert_line(path) if file_types.is_folder(path) else ""
            code = "model_unsupported" if hint else "model_missing"
            raise ModelFileError(f"{name} is a folder, not a model file", hint, code=code)
        yield
    except ModelFileError as error:
        named = error.message if name in error.message else f"{name}: {error.message}"
        raise ModelFileError(named, error.hint, code=error.code, path=path) from error
    except FileNotFoundError as error:
        text = f"no such model file: {name}"
        raise ModelFileError(text, code="model_missing", path=path) from error
    except OSError as error:
        raise ModelFileError(f"cannot read {name}: {error.strerror}", path=path) from error
    except (DiffuseError, *tensor_file.MALFORMED) as error:
        reason = files.shorten(error.message if isinstance(error, DiffuseError) else error, 300)
        text = f"{name} is not a valid model file: {reason}"
        raise ModelFileError(text, code="model_damaged", path=path) from error


def _check_shapes(model: StoredModel, entries: Mapping[str, tensor_file.TensorEntry]) -> None:
    """Check that tensors match the network, for each kind of weights.

    Weak weights are expected if the description has their step.
    """
    shapes = {name: f"F32 {list(shape)}" for name, shape in model.blueprint.shapes.items()}
    has_raw = any(name.startswith(RAW) for name in entries)
    prefixes = ("", *[RAW] * has_raw, *[WEAK] * (model.weak is not None))
    expected = {prefix + name: text for prefix in prefixes for name, text in shapes.items()}
    actual = {name: f"{entry.dtype} {list(entry.shape)}" for name, entry in entries.items()}
    if wrong := tensor_file.describe_mismatch(expected, actual):
        raise ModelFileError(f"its tensors do not fit its network: {wrong}", code="model_damaged")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinite weights. The extremes show them without a mask in memory."""
    finite = {name: torch.stack(tensor.aminmax()).isfinite() for name, tensor in tensors.items()}
    if bad := [name for name, extremes in finite.items() if not extremes.all()]:
        text = f"its weights are NaN or infinite: {tensor_file.format_first(bad)}"
        raise ModelFileError(text, code="model_damaged")
