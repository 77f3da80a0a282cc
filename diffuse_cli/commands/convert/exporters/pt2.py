"""The network as a program of `torch.export`, which PyTorch runs without the code of `diffuse`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.system import Progress, Work, files

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile

OUT = "model.pt2"
OPTIONS: tuple[str, ...] = ()

TASK = "tracing the network"


def check(config: ConvertConfig) -> None:
    """Everything that it needs is there."""


def write(path: Path, file: ModelFile, config: ConvertConfig) -> Work[Mapping[str, Any]]:
    """Write the file. The metadata are extra files in it."""
    import torch

    from diffuse_cli.commands.convert import network_graph

    model = file.model
    yield Progress(TASK, 0, 1)
    net = network_graph.complete(model, config.weights or "ema")
    program = network_graph.trace_network(net, model.blueprint)
    yield Progress(TASK, 1, 1)
    data = io.BytesIO()
    torch.export.save(program, data, extra_files=dict(network_graph.metadata(model)))
    files.write_bytes(path, data.getvalue())
    return {"parameters": model.parameters}
