"""Named networks."""

from __future__ import annotations

import re

import pytest
import torch

from diffuse_cli.config import TrainConfig, UNetConfig
from diffuse_cli.core import SCHEDULES, TARGETS, VARIANCES, WEIGHTINGS, UNet
from diffuse_cli.core.unet import count_parameters
from diffuse_cli.errors import UsageError
from diffuse_cli.options import from_dict
from diffuse_cli.presets import PRESETS, choose, network


def train(**options) -> TrainConfig:
    return TrainConfig(data="images", **options)


def parameters(config: UNetConfig) -> int:
    with torch.device("meta"):
        return count_parameters(UNet(config))


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_help_says_how_many_parameters(name: str):
    said = re.match(r"([\d.]+) M", PRESETS[name].help)
    assert said is not None
    digits = len(said[1].partition(".")[2])
    millions = parameters(network(train(), name, (32, 32), 3)) / 1e6
    assert f"{millions:.{digits}f}" == said[1]


def test_ddpm_cifar10_is_the_network_of_ho_et_al():
    config = network(train(), "ddpm-cifar10", (32, 32), 3)
    assert parameters(config) == 35_746_307
    assert (config.width, config.multipliers, config.blocks) == (128, (1, 2, 2, 2), 2)
    assert (config.attention, config.scale_shift, config.dropout) == ((16,), False, 0.1)


@pytest.mark.parametrize("name", list(PRESETS))
def test_what_goes_with_a_preset_is_a_sane_configuration(name: str):
    config = from_dict(TrainConfig, {"data": "images", **PRESETS[name].train})
    assert config.schedule in SCHEDULES
    assert config.target in TARGETS
    assert config.variance in VARIANCES
    assert config.weighting is None or config.weighting in WEIGHTINGS


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if not p.published])
@pytest.mark.parametrize(
    "size", [(28, 28), (32, 32), (64, 64), (31, 33), (8, 8), (2, 2), (20, 28), (256, 128)], ids=str
)
def test_a_size_from_the_data_always_has_a_network(name: str, size: tuple[int, int]):
    for channels in (1, 3, 4):
        config = network(train(), name, size, channels)
        assert (config.size, config.channels) == (size, channels)
        halvings = len(config.multipliers) - 1
        assert not any(side % 2**halvings for side in size)


@pytest.mark.parametrize(
    ("size", "levels"), [((28, 28), 3), ((32, 32), 3), ((64, 64), 4), ((128, 128), 5), ((9, 9), 1)]
)
def test_levels_are_added_until_eight_pixels(size: tuple[int, int], levels: int):
    assert len(network(train(), "tiny", size, 1).multipliers) == levels


def test_a_typed_size_that_a_typed_preset_cannot_halve_is_refused():
    with pytest.raises(UsageError, match="--preset tiny halves 2 times, which --size 30x30"):
        network(train(preset="tiny", size=30), "tiny", (30, 30), 1)
    with pytest.raises(UsageError, match="multiple of 4"):
        network(train(preset="tiny", size=(32, 30)), "tiny", (32, 30), 1)
    assert len(network(train(size=30), "tiny", (30, 30), 1).multipliers) == 2
    assert len(network(train(preset="tiny"), "tiny", (30, 30), 1).multipliers) == 2


def test_a_published_network_keeps_its_levels():
    with pytest.raises(UsageError, match="Choose a --size"):
        network(train(), "ddpm-cifar10", (28, 28), 1)


def test_fields_of_the_configuration_stand_over_the_preset():
    config = network(train(unet={"width": 64, "multipliers": [1]}), "tiny", (28, 28), 1)
    assert (config.width, config.multipliers) == (64, (1,))
    with pytest.raises(UsageError, match=r"\[unet\]: there is no option 'widht'.*'width'"):
        network(train(unet={"widht": 64}), "tiny", (28, 28), 1)


def test_the_machine_chooses_where_nothing_is_named():
    assert choose((64, 64), "cpu") == "tiny"
    for size in ((28, 28), (64, 128)):
        assert choose(size, "cuda") in PRESETS
        assert choose(size, "mps") in PRESETS


def test_an_unknown_preset_is_a_usage_error():
    with pytest.raises(UsageError, match=r"--preset.*Did you mean 'small'"):
        network(train(), "smal", (28, 28), 1)
