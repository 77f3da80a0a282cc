"""The network as an ONNX file, which runtimes in many languages run without PyTorch.

It is compared with the network in onnxruntime before it is written. The process, which is numbers
and not a network, is in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.convert.exporters import export_error
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.system import (
    ModelFileError,
    Notice,
    Progress,
    UsageError,
    Work,
    extra_package,
    files,
)

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile

OUT = "model.onnx"
OPTIONS: tuple[str, ...] = ()

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

MOST_BYTES = 2**31 - 2**24
"""The largest weights: an ONNX file is one protocol buffer, of less than 2 GiB."""

CLOSE = 1e-3
"""The largest difference to the network, of outputs with a deviation of 1, that may come from the
order of sums."""

TASK = "tracing the network"


def check(config: ConvertConfig) -> None:
    """Refuse to begin without the packages."""
    check_packages("--to onnx")


def check_packages(option: str) -> None:
    """Refuse an option without the packages that make ONNX files.

    Raises:
        UsageError: names the first one that is missing.
    """
    for name in PACKAGES:
        extra_package(name, "onnx", f"{option} needs {name}", UsageError)


def write(path: Path, file: ModelFile, config: ConvertConfig) -> Work[Mapping[str, Any]]:
    """Write the file, and report how far its outputs are from the network's."""
    yield Progress(TASK, 0, 1)
    data, error = make_file(file, config.weights or "ema")
    yield Progress(TASK, 1, 1)
    files.write_bytes(path, data)
    yield Notice(f"outputs in onnxruntime differ by {error:.1g} at most")
    return {"parameters": file.model.parameters, "error": error}


def make_file(file: ModelFile, weights: str) -> tuple[bytes, float]:
    """Return the content of an ONNX file, and how far its outputs are from the network's.

    Raises:
        ModelFileError: the weights do not fit, are missing, or onnxruntime computes something else.
    """
    from diffuse_cli.commands.convert import network_graph

    model = file.model
    tensors = model.tensors(weights)
    if sum(tensor.nbytes for tensor in tensors.values()) > MOST_BYTES:
        hint = "Its files are smaller than 2 GiB; --to diffusers has no limit"
        raise export_error(file, "ONNX", "parameters", f"{model.parameters:,}", hint)
    net = network_graph.complete(model, weights)
    data = network_graph.onnx_file(net, model.blueprint, network_graph.metadata(model))
    error = network_graph.onnx_error(data, net, model.blueprint)
    if not error <= CLOSE:
        text = f"{files.show(file.path)}: onnxruntime computes something else, by {error:.2g}"
        raise ModelFileError(text, "Try other versions of torch and onnxscript", path=file.path)
    return data, error
