"""Networks that leave as graphs: the same answers without this program's code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab import ROOT
from private_models import SMALLEST, model_of

from diffuse_cli.app import main
from diffuse_cli.commands.convert import network_graph
from diffuse_cli.commands.convert.exporters import onnx
from diffuse_cli.commands.convert.network_graph import draw_inputs
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import Conditions, Space
from diffuse_cli.core.conditions import ConditioningArray, LabelColumn, MetadataTable, NumberColumn
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models import model_file

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

AGE = NumberColumn(name="age", mean=1.0, deviation=1.0, low=0.0, high=9.0)
SITE = LabelColumn(name="site", values=("a", "b"))

MODELS: dict[str, dict[str, Any]] = {
    "classes": {
        "config": SMALLEST,  # there is attention in the middle
        "conditions": Conditions(classes=("a", "b")),
        "diffusion": DiffusionConfig(variance="learned", num_timesteps=50),
    },
    "everything told": {
        "config": Config(
            width=8, multipliers=(1, 2), blocks=1, groups=4, patch=2, block="convnext",
            time_embedding="fourier", resblock_updown=True,
        ),
        "space": Space(
            channels=2, size=(16,), medium="array", levels=None, mean=(0.0, 1.0), std=(1.0, 2.0)
        ),
        "conditions": Conditions(
            given=ConditioningArray(channels=2), table=MetadataTable(columns=(AGE, SITE))
        ),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each model, the one with classes as ONNX, which takes ten seconds, and the
    other as a program of torch."""
    folder = tmp_path_factory.mktemp("traced")
    for name, suffix in (("classes", ".onnx"), ("everything told", ".pt2")):
        path = folder / f"{name}.safetensors"
        model_file.save(path, model_of(**MODELS[name]))
        assert main(["convert", str(path), "-o", str(path.with_suffix(suffix)), "-q"]) == 0
    return folder


def session(path: Path) -> Any:
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@torch.no_grad()
def test_a_network_answers_as_it_does_here(written: Path):
    model = model_file.load(written / "classes.safetensors")
    run, net = session(written / "classes.onnx"), model.network()
    for n in (1, 2, 5):
        fed = draw_inputs(model.blueprint, n, seed=10 + n)
        assert [i.name for i in run.get_inputs()] == list(fed)
        (found,) = run.run(None, {key: tensor.numpy() for key, tensor in fed.items()})
        expected = net(**fed)
        assert float(expected.std()) > 0.1
        assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    fed["label"] = (fed["label"] + 1) % 3
    (other,) = run.run(None, {key: tensor.numpy() for key, tensor in fed.items()})
    assert not np.allclose(other, found, atol=1e-3)


def test_a_file_says_what_a_sampler_must_know(written: Path):
    model = model_file.load(written / "classes.safetensors")
    said = session(written / "classes.onnx").get_modelmeta().custom_metadata_map
    own = model.blueprint

    def known(key: str) -> Any:
        return json.loads(said[f"diffuse.{key}"])

    assert known("timesteps") == own.process.timesteps.tolist()
    assert known("alpha_bars") == own.process.alpha_bars.tolist()
    assert (known("target"), known("variance")) == (own.diffusion.target, own.diffusion.variance)
    assert (known("space")["size"], known("classes")) == (
        list(own.space.size), list(own.conditions.classes),
    )  # fmt: skip
    assert known("config") == json.loads(model_file.metadata(model)["diffuse.config"])
    data = (written / "classes.onnx").read_bytes()
    for path in (str(ROOT).encode(), b"site-packages", b".py"):
        assert path not in data


@torch.no_grad()
def test_a_program_of_torch_answers_and_says_the_same(written: Path):
    """Of a network with all other parts, which is told all else."""
    model = model_file.load(written / "everything told.safetensors")
    said = {"diffuse.timesteps": "", "diffuse.space": "", "diffuse.columns": ""}
    program = torch.export.load(written / "everything told.pt2", extra_files=said)
    assert json.loads(said["diffuse.timesteps"]) == model.blueprint.process.timesteps.tolist()
    assert json.loads(said["diffuse.space"])["mean"] == [0.0, 1.0]
    assert [column["name"] for column in json.loads(said["diffuse.columns"])] == ["age", "site"]
    for n in (1, 4):
        fed = draw_inputs(model.blueprint, n)
        expected = model.network()(**fed)
        found = program.module()(fed.pop("x"), fed.pop("t"), **fed)
        assert float(expected.std()) > 0.1
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


# -- the command ----------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_extra(diffuse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    ran = diffuse("convert", "nowhere", "--to", "onnx", "-q")
    ran.fails(2, "needs onnxscript", "`pip install '.[onnx]'`")


def test_a_file_is_written_only_if_it_computes_the_same(
    diffuse, written: Path, monkeypatch: pytest.MonkeyPatch
):
    data = (written / "classes.onnx").read_bytes()
    monkeypatch.setattr(network_graph, "onnx_file", lambda *parts: data)
    model = model_of(**MODELS["classes"])
    next(iter(model.ema.values())).add_(1)
    model_file.save(Path("model.safetensors"), model)
    line = ("convert", "model.safetensors", "--to", "onnx", "-q")
    diffuse(*line).fails(4, "onnxruntime computes something else")
    assert not Path("model.onnx").exists()
    monkeypatch.setattr(onnx, "MOST_BYTES", 10_000)
    diffuse(*line).fails(4, "ONNX cannot say parameters = ")
