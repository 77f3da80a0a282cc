"""`diffuse eval --features NAME --feature-weights FILE`, as a user types it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffuse_cli.metrics.features import dinov2, find_weights, inception
from diffuse_cli.system.events import finish
from diffuse_cli.system.files import sha256

SHORT = ("-n", 4, "--steps", 2, "--timesteps", 2)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A file of random weights of a small DINOv2 that passes for the published one."""
    shape = dinov2.Shape(width=32, depth=1, heads=2, grid=4)
    torch.manual_seed(0)
    file = tmp_path / dinov2.PUBLISHED.file
    state = dinov2.VisionTransformer(shape).state_dict()
    torch.save({k: torch.randn_like(v) for k, v in state.items()}, file)
    found = replace(dinov2.PUBLISHED, sha256=sha256(file))
    monkeypatch.setattr(dinov2, "PUBLISHED", found)
    monkeypatch.setattr(dinov2, "DIM", shape.width)
    monkeypatch.setattr(dinov2.build, "__defaults__", (shape,))
    return file


def test_the_weights_of_a_file_are_used_and_named(diffuse, model, lab, small):
    options = ("--features", "dinov2", "--feature-weights", small, "--json")
    ran = diffuse("eval", model, lab["grey"], *SHORT, *options).ok()
    assert ran.json["features"]["name"] == "dinov2"
    assert ran.json["features"]["weights_sha256"] == sha256(small)
    assert ran.json["features"]["resize"].startswith("224x224")
    assert ran.json["frechet_distance"] > 0


def test_the_weights_of_the_folder_are_used(diffuse, lab, images, small, monkeypatch):
    line = ("eval", lab["grey"], images, "-n", 4, "--features", "dinov2", "--json")
    named = diffuse(*line, "--feature-weights", small).json
    monkeypatch.setenv("DIFFUSE_WEIGHTS", str(small.parent))
    assert {**diffuse(*line).json, "seconds": 0} == {**named, "seconds": 0}


def test_weights_of_the_model_and_of_the_features_are_given_together(diffuse, model, lab):
    line = ("eval", model, lab["grey"], *SHORT, "--precision", "fp32", "--json")
    raw = diffuse(*line, "--weights", "raw").json
    file = finish(find_weights("efficientnet-lite0"))
    both = diffuse(*line, "--feature-weights", file, "--weights", "raw").json
    assert {**both, "seconds": 0} == {**raw, "seconds": 0}
    assert raw["settings"]["weights"] == "raw"
    assert diffuse(*line).json["settings"]["weights"] == "ema"


@pytest.mark.parametrize("network", [inception, dinov2])
def test_a_wrong_checksum_ends_before_the_work(
    diffuse, model, lab, monkeypatch, instead_of_networks, network
):
    """Of a file in the folder of weights; of a named one, in the refusals of eval."""
    file = Path(network.PUBLISHED.file)
    monkeypatch.setenv("DIFFUSE_WEIGHTS", ".")
    file.write_bytes(b"other weights")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    instead_of_networks()
    name = network.__name__.rpartition(".")[2]
    ran = diffuse("eval", model, lab["grey"], *SHORT, "--features", name, "-q")
    ran.fails(4, f"{file} is not the weights of {name}")


def test_without_weights_and_network_one_line_says_what_to_do(
    diffuse, model, lab, monkeypatch, tmp_path
):
    what = replace(inception.PUBLISHED, url="http://127.0.0.1:1/weights.pth")
    monkeypatch.setattr(inception, "PUBLISHED", what)
    monkeypatch.setenv("DIFFUSE_CACHE", str(tmp_path / "cache"))
    ran = diffuse("eval", model, lab["grey"], *SHORT, "--features", "inception", "-q").fails(4)
    for text in (what.url, what.sha256, "--feature-weights FILE", "DIFFUSE_WEIGHTS"):
        assert text in ran.line
