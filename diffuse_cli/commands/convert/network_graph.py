"""A network as a graph of operations, for runtimes without Python, and the facts that a sampler
needs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError

from diffuse_cli.core.conditions import UNTOLD
from diffuse_cli.core.space import expand_batch
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import ModelFileError, shorten

BATCH = "batch"
"""The name of the dimension that may have any length."""


class CompleteNetwork(nn.Module):
    """Network with the Wiener filter that it corrects, which predicts the target.

    Time inputs are evenly spaced, as in every model that `diffuse` trained.
    """

    def __init__(self, net: nn.Module, blueprint: Blueprint) -> None:
        super().__init__()
        assert blueprint.gaussian
        process, self.net, self.gaussian = blueprint.process, net, blueprint.gaussian
        levels = process.alpha_bars.sqrt(), (1 - process.alpha_bars).sqrt()
        columns = (*levels, *blueprint.denoiser(net).coefficients)
        self.register_buffer("rows", torch.stack(columns, 1).float())
        zeros = torch.zeros(1, *blueprint.space.shape)
        self.gaussian.denoise(zeros, 1.0, 1.0)  # tables, not traced
        self.rate = (process.num_timesteps - 1) / float(process.timesteps[-1])

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        given: Tensor | None = None,
        row: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, C, *size) at time inputs t (B,) to the target, and a learned variance."""
        cond = {"label": label, "given": given, "row": row}
        place = t * self.rate
        rows: Tensor = self.rows  # type: ignore[assignment]
        below = place.floor().long().clamp(0, len(rows) - 2)
        rows = rows[below].lerp(rows[below + 1], (place - below)[:, None])
        alpha, sigma, a, b = (expand_batch(column, x) for column in rows.unbind(1))
        guess, channels = self.gaussian.denoise(x, alpha, sigma), x.shape[1]
        conditions = {name: value for name, value in cond.items() if value is not None}
        out = self.net(torch.cat([x, guess], 1), t, **conditions)
        x0 = guess + self.gaussian.scale(alpha, sigma, x) * out[:, :channels]
        return torch.cat([a * x0 + b * (x - alpha * x0) / sigma, out[:, channels:]], 1)


def complete(model: model_file.StoredModel, weights: str) -> nn.Module:
    """Return the network that predicts the target, with these weights."""
    net = model.network(weights)
    return CompleteNetwork(net, model.blueprint) if model.blueprint.wiener else net


def draw_inputs(blueprint: Blueprint, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a network, by name: `x` (n, C, *size) and `t` (n,); `label` (n,), `given`
    (n, C', *size) and `row` (n, codes) for a model with metadata columns."""
    draw, conditions = torch.Generator().manual_seed(seed), blueprint.conditions
    last = float(blueprint.process.timesteps[-1])
    inputs = {
        "x": torch.randn(n, *blueprint.space.shape, generator=draw),
        "t": torch.rand(n, generator=draw) * last,
    }
    if count := conditions.num_classes:
        inputs["label"] = torch.randint(0, count + 1, (n,), generator=draw)
    if channels := conditions.given_channels:
        inputs["given"] = torch.randn(n, channels, *blueprint.space.size, generator=draw)
    if conditions.table:
        inputs["row"] = torch.zeros(n, len(conditions.table.places))
        inputs["row"][0] = UNTOLD
    return inputs


def trace_network(net: nn.Module, blueprint: Blueprint) -> Any:
    """Return the network as a `torch.export.ExportedProgram` of any batch size, without the paths
    of the files that its code was traced in.

    Raises:
        ModelFileError: torch cannot trace it, such as one that takes `len` of its input.
    """
    example = draw_inputs(blueprint, 2)
    x, t = example.pop("x"), example.pop("t")
    batch = torch.export.Dim(BATCH)
    shapes = {name: {0: batch} for name in ("x", "t", *example)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(net, (x, t), example, dynamic_shapes=shapes, strict=False)
        except UserError as error:
            why = shorten(str(error).partition("\n")[0])
            text = f"torch cannot trace the network {blueprint.network}: {why}"
            raise ModelFileError(text, code="model_mismatch") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def onnx_file(net: nn.Module, blueprint: Blueprint, properties: Mapping[str, str]) -> bytes:
    """Return the bytes of an ONNX file, with metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            trace_network(net, blueprint),
            dynamo=True,
            input_names=list(draw_inputs(blueprint, 2)),
            output_names=["y"],
            verbose=False,
        )
    for node in program.model.graph:  # where in the code of this machine each came from
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.update(properties)
    data: bytes = program.model_proto.SerializeToString()
    return data


def onnx_error(data: bytes, net: nn.Module, blueprint: Blueprint) -> float:
    """Return the largest difference of outputs in onnxruntime, in deviations of the network's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for n in (1, 3):
        fed = draw_inputs(blueprint, n, seed=n)
        (y,) = session.run(None, {name: tensor.numpy() for name, tensor in fed.items()})
        with torch.no_grad():
            expected = net(**fed)
        error = (torch.from_numpy(y) - expected).abs().max()
        worst = max(worst, float(error / expected.std().clamp(min=1e-3)))
    return worst


def metadata(model: model_file.StoredModel) -> Mapping[str, str]:
    """Return the values that a sampler needs, as JSON by name.

    `diffuse.timesteps` is what the network is shown as `t` at each timestep, `diffuse.alpha_bars`
    the fraction of signal there. `diffuse.config` is the description in the model file.
    """
    blueprint = model.blueprint
    process = blueprint.process
    fields: dict[str, Any] = {
        "timesteps": process.timesteps.tolist(),
        "alpha_bars": process.alpha_bars.tolist(),
        "target": blueprint.diffusion.target,
        "variance": blueprint.diffusion.variance,
        "space": blueprint.space.to_dict(),
        "classes": list(blueprint.conditions.classes),
    }
    if blueprint.conditions.table:
        fields["columns"] = blueprint.conditions.table.to_dict()["columns"]
    described = {name: json.dumps(value) for name, value in fields.items()}
    return {
        **{n: text for n, text in model_file.metadata(model).items() if n != "format"},
        **{f"diffuse.{name}": text for name, text in described.items()},
    }
