"""Feature networks on the meta device: what mixes devices or reads a number back fails."""

import pytest
import torch

from diffuse_cli.metrics.features import FEATURES
from diffuse_cli.metrics.features.dinov2 import LARGE, SIZE, VisionTransformer, resize_positions
from diffuse_cli.metrics.features.efficientnet_lite0 import EfficientNetLite0
from diffuse_cli.metrics.features.inception import Inception


def vision_transformer() -> torch.nn.Module:
    network = VisionTransformer(LARGE)
    network.pos_embed = torch.nn.Parameter(resize_positions(network.pos_embed, SIZE // LARGE.patch))
    return network


NETWORKS = {
    "efficientnet-lite0": EfficientNetLite0,
    "inception": Inception,
    "dinov2": vision_transformer,
}


@pytest.mark.parametrize("name", list(FEATURES))
def test_features_read_nothing_back(name):
    with torch.device("meta"):
        network = NETWORKS[name]().eval()
        pixels = torch.zeros(2, 3, 40, 56, dtype=torch.uint8)
    with torch.inference_mode():
        features = network(FEATURES[name].preprocess(pixels))
    assert features.is_meta
    assert features.shape == (2, FEATURES[name].DIM)
