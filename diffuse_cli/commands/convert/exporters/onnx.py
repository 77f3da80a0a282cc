"""The network as an ONNX file, which runtimes in many languages run without PyTorch.

It is compared with the network in onnxruntime before it is written. The process, which is numbers
and not a network, is in the file's metadata.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.convert.exporters import lacking
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.system import files
from diffuse_cli.system.errors import ModelFileError, UsageError
from diffuse_cli.system.events import Notice, Progress, Work

if TYPE_CHECKING:
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.models.model_file import Found

OUT = "model.onnx"
PARTS: tuple[str, ...] = ()
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
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--to onnx needs {missing[0]}", "Install it: pip install 'diffuse-cli[onnx]'"
        )


def write(path: Path, found: Found, config: ConvertConfig) -> Work[Mapping[str, Any]]:
    """Write the file, and say how far its outputs are from the network's."""
    from diffuse_cli.commands.convert.exporters._graph import metadata

    model = found.model
    tensors = model.tensors(config.weights or "ema")
    if sum(tensor.nbytes for tensor in tensors.values()) > MOST_BYTES:
        hint = "Its files are smaller than 2 GiB; --to diffusers has no limit"
        raise lacking(found, "ONNX", "parameters", f"{model.parameters:,}", hint)
    yield Progress(TASK, 0, 1)
    net = model.network(config.weights or "ema")
    data = _graph(net, model.blueprint, metadata(model))
    yield Progress(TASK, 1, 1)
    error = _differs(data, net, model.blueprint)
    if not error <= CLOSE:
        raise ModelFileError(
            f"{files.show(found.path)}: onnxruntime computes something else, by {error:.2g}",
            "Try other versions of torch and onnxscript",
        )
    files.write_bytes(path, data)
    yield Notice(f"outputs in onnxruntime differ by {error:.1g} at most")
    return {"parameters": model.parameters, "error": error}


def _graph(net: Any, own: Blueprint, said: Mapping[str, str]) -> bytes:
    """Return the bytes of an ONNX file."""
    import warnings

    import torch

    from diffuse_cli.commands.convert.exporters._graph import inputs, traced

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            traced(net, own),
            dynamo=True,
            input_names=list(inputs(own, 2)),
            output_names=["y"],
            verbose=False,
        )
    for node in program.model.graph:  # where in the code of this machine each came from
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.update(said)
    data: bytes = program.model_proto.SerializeToString()
    return data


def _differs(data: bytes, net: Any, own: Blueprint) -> float:
    """Return the largest difference of outputs in onnxruntime, in deviations of the network's."""
    import onnxruntime
    import torch

    from diffuse_cli.commands.convert.exporters._graph import inputs

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in (1, 3):
        fed = inputs(own, n, seed=n)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in fed.items()})
        with torch.no_grad():
            expected = net(**fed)
        error = (torch.from_numpy(found) - expected).abs().max()
        worst = max(worst, float(error / expected.std().clamp(min=1e-3)))
    return worst
