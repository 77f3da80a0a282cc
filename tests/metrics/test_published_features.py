"""The published networks, with random weights: against torch-fidelity, and written out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from PIL import Image

from diffuse_cli.metrics.features import FEATURES, dinov2, extract_features, inception, load_network
from diffuse_cli.metrics.features.efficientnet_lite0 import EfficientNetLite0
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import finish
from diffuse_cli.system.files import sha256

SMALL = dinov2.Shape(width=32, depth=2, heads=4, patch=14, grid=5)


def noise(n: int, height: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=draw)


def saved(state, path: Path, module, monkeypatch, **options) -> Path:
    """Random weights in a file that passes for the published one."""
    torch.save(state, path, **options)
    found = replace(module.PUBLISHED, sha256=sha256(path), size=path.stat().st_size)
    monkeypatch.setattr(module, "PUBLISHED", found)
    return path


# -- inception -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """torch-fidelity's network with random weights and running statistics."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Random(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            torch.manual_seed(0)
            for part in self.modules():
                if isinstance(part, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(part.weight)
                elif isinstance(part, torch.nn.BatchNorm2d):
                    part.weight.data.uniform_(0.5, 1.5)
                    part.bias.data.normal_(0, 0.1)
                    part.running_mean.normal_(0, 0.1)
                    part.running_var.uniform_(0.5, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        return Random("inception", ["2048"])


@pytest.mark.parametrize("zipped", mostly_slow([False, True], always=1))
def test_inception_is_that_of_torch_fidelity(theirs, tmp_path, monkeypatch, zipped):
    """The published file is of the old format, which is no zip."""
    file = saved(
        theirs.state_dict(), tmp_path / "weights.pth", inception, monkeypatch,
        _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    network = load_network("inception", "cpu", file)
    assert (network.name, network.dim, network.weights) == ("inception", 2048, sha256(file))
    for pixels in (noise(2, 32, 32), noise(1, 310, 400)):
        with torch.inference_mode():
            expected = theirs(pixels)[0]
        found = torch.from_numpy(finish(extract_features(network, pixels.numpy())))
        assert expected.std() > 0.1
        assert (found - expected).norm() <= 1e-6 * expected.norm()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.max()))
    names = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    with torch.device("meta"):
        assert {k: v.shape for k, v in inception.Inception().state_dict().items()} == names


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (31, 700), (1, 1)])
def test_images_are_resized_as_tensorflow_1_did(size):
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    pixels = noise(2, *size)
    expected = (resize(pixels.float(), size=(299, 299), align_corners=False) - 128) / 128
    assert torch.equal(inception.preprocess(pixels), expected)


# -- dinov2 ----------------------------------------------------------------------------------------


@pytest.fixture
def state():
    """Random weights of a small transformer, under the names of the large one."""
    torch.manual_seed(0)
    network = dinov2.VisionTransformer(SMALL)
    found = {k: torch.randn_like(v) * 0.3 for k, v in network.state_dict().items()}
    return {**found, "mask_token": torch.zeros(1, SMALL.width)}


def written_out(state, x):
    """The class token by the formulas of Dosovitskiy et al. 2021 and Touvron et al. 2021."""
    width, heads = SMALL.width, SMALL.heads

    def norm(x, name):
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    n, side = len(x), 224 // 14
    patches = x.reshape(n, 3, side, 14, side, 14).permute(0, 2, 4, 1, 3, 5).reshape(n, side**2, -1)
    kernel = state["patch_embed.proj.weight"].reshape(width, -1)
    patches = patches @ kernel.T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(n, 1, width), patches], 1)
    tokens = tokens + dinov2.resize_positions(state["pos_embed"], side)
    for k in range(SMALL.depth):
        at = f"blocks.{k}"
        q, k_, v = linear(norm(tokens, f"{at}.norm1"), f"{at}.attn.qkv").split(width, -1)
        found = []
        for head in range(heads):
            own = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[..., own] @ k_[..., own].transpose(1, 2) / math.sqrt(width / heads)
            found.append(scores.softmax(-1) @ v[..., own])
        attended = linear(torch.cat(found, -1), f"{at}.attn.proj")
        tokens = tokens + state[f"{at}.ls1.gamma"] * attended
        inner = linear(norm(tokens, f"{at}.norm2"), f"{at}.mlp.fc1")
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        tokens = tokens + state[f"{at}.ls2.gamma"] * linear(inner, f"{at}.mlp.fc2")
    return norm(tokens, "norm")[:, 0]


def test_dinov2_is_its_formula(state, tmp_path, monkeypatch):
    network = dinov2.build(saved(state, tmp_path / "w.pth", dinov2, monkeypatch), SMALL)
    x = dinov2.preprocess(noise(2, 40, 50))
    expected = written_out({k: v.double() for k, v in state.items()}, x.double())
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_dinov2_names_every_tensor_of_the_file():
    """343 tensors of 304,368,640 numbers, of which the mask's are left behind."""
    with torch.device("meta"):
        found = dinov2.VisionTransformer().state_dict()
    assert len(found) == 343 - 1
    assert sum(tensor.numel() for tensor in found.values()) == 304_368_640 - 1024
    assert found["pos_embed"].shape == (1, 1370, 1024)
    assert found["blocks.23.attn.qkv.weight"].shape == (3072, 1024)


def cubic(values, places):
    """Keys' cubic (1981) with a = -0.75 through `values`, whose ends go on."""
    found = []
    for place in places:
        first = math.floor(place) - 1
        total = 0.0
        for i in range(first, first + 4):
            d = abs(place - i)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            total += (near if d <= 1 else far) * float(values[min(max(i, 0), len(values) - 1)])
        found.append(total)
    return torch.tensor(found)


def test_positions_are_resized_as_in_the_released_code():
    """Place i of 16 lies at (i + 0.5) 37 / 16.1 - 0.5 of the 37."""
    across, down = torch.rand(37), torch.rand(37)
    positions = torch.cat([torch.tensor([9.0]), torch.outer(down, across).flatten()])[None, :, None]
    found = dinov2.resize_positions(positions, 16)
    assert found.shape == (1, 257, 1)
    assert found[0, 0] == 9
    places = [(i + 0.5) * 37 / 16.1 - 0.5 for i in range(16)]
    expected = torch.outer(cubic(down, places), cubic(across, places))
    torch.testing.assert_close(found[0, 1:, 0].reshape(16, 16), expected, rtol=1e-3, atol=1e-4)
    assert dinov2.resize_positions(positions, 37) is positions


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (300, 500), (28, 900)])
def test_images_are_resized_as_pillow_does(size):
    """Of upright images Pillow resizes the height first since its version 13."""
    pixels = noise(1, *size)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    resized = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    found = dinov2.preprocess(pixels)[0]
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (dinov2.MEAN, dinov2.STD))
    levels = (found * deviation + mean) * 255
    wrong = (levels - torch.from_numpy(resized).permute(2, 0, 1)).abs()
    assert wrong.max() < 1.001
    assert (wrong > 0.001).float().mean() < 0.005


# -- all of them -----------------------------------------------------------------------------------


def large_transformer():
    network = dinov2.VisionTransformer(dinov2.LARGE)
    positions = dinov2.resize_positions(network.pos_embed, dinov2.SIZE // dinov2.LARGE.patch)
    network.pos_embed = torch.nn.Parameter(positions)
    return network


NETWORKS = {
    "efficientnet-lite0": EfficientNetLite0, "inception": inception.Inception,
    "dinov2": large_transformer,
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_features_read_nothing_back(name):
    """On the meta device, where what mixes devices or reads a number back fails."""
    with torch.device("meta"):
        network, pixels = NETWORKS[name]().eval(), torch.zeros(2, 3, 40, 56, dtype=torch.uint8)
    with torch.inference_mode():
        features = network(FEATURES[name].preprocess(pixels))
    assert features.is_meta
    assert features.shape == (2, FEATURES[name].DIM)


@pytest.mark.parametrize("name", FEATURES)
def test_another_file_is_refused_and_nothing_is_loaded(name, tmp_path, monkeypatch):
    published = FEATURES[name].PUBLISHED
    assert published.network == name
    file = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1)}, file)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    for path, said in (
        (file, r"other\.pth is not the weights of .*SHA-256"),
        (tmp_path / "none.pth", r"cannot read .*none\.pth"),
    ):
        with pytest.raises(ModelFileError, match=said) as caught:
            load_network(name, "cpu", path)
        assert caught.value.exit_code == 4


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "code"])
def test_every_tensor_counts_and_a_file_runs_no_code(state, tmp_path, monkeypatch, capsys, change):
    if change == "missing":
        del state["blocks.1.ls2.gamma"]
    elif change == "unknown":
        state["blocks.2.ls2.gamma"] = torch.zeros(SMALL.width)
    else:
        state["norm.bias"] = torch.zeros(3) if change == "shape" else Evil()
    file = saved(state, tmp_path / "keys.pth", dinov2, monkeypatch)
    with pytest.raises(ModelFileError, match=r"keys\.pth"):
        dinov2.build(file, SMALL)
    assert capsys.readouterr().out == ""
