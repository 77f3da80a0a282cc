"""Named networks."""

import re
from dataclasses import replace

import pytest
import torch
from networks import Plan

from diffuse_cli.config.presets import (
    PRESETS,
    choose,
    resolve_architecture,
    translate_network_errors,
)
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import Conditions, Space
from diffuse_cli.core.networks import NETWORKS, count_parameters, vit
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.core.parameterization import has_noise, output_channels
from diffuse_cli.system.errors import UsageError


def train(**options):
    return TrainConfig(data="images", **options)


def network(config, name, size, channels):
    """The network of a preset for images, which it can be built for."""
    space = Space(channels=channels, size=size)
    found, settings = resolve_architecture(config, name, space)
    assert found == PRESETS[name].network
    with translate_network_errors(found):
        settings.check(space)
    return settings


def parameters(config, size=(32, 32), out_channels=3, num_classes=0):
    classes = Conditions(classes=tuple(map(str, range(num_classes))))
    kind = "unet" if isinstance(config, Config) else "vit"
    with torch.device("meta"):
        made = Plan(config, Space(channels=3, size=size), classes, out_channels, kind)
        return count_parameters(made.build())


def side(name):
    """The size of a preset's images, with which the names of larger ones end."""
    return int((re.search(r"(64|128|256)$", name) or ["32"])[0])


def own(name):
    """A preset's network at its own size."""
    return network(train(), name, (side(name), side(name)), 3)


def own_parameters(name, num_classes=0):
    """The same with the output that its variance needs, counted."""
    out = output_channels(PRESETS[name].train.get("variance", "small"), 3)
    return parameters(own(name), (side(name), side(name)), out, num_classes)


PUBLISHED = [name for name, preset in PRESETS.items() if preset.published]


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_a_configuration_and_its_help_says_how_many_parameters(name):
    assert TrainConfig.from_dict({"data": "images", **PRESETS[name].train}).lr is not None
    said = re.match(r"([\d.]+) M(?: with (\d+) classes)?", PRESETS[name].help)
    digits = len(said[1].partition(".")[2])
    millions = own_parameters(name, int(said[2] or 0)) / 1e6
    assert f"{millions:.{digits}f}" == said[1]


COUNTS = {
    "ddpm-cifar10": (35_746_307,),
    "ddpm-celebahq-256": (113_673_219,),
    "iddpm-cifar10": (52_546_438,),
    "iddpm-imagenet64": (121_063_942, 121_575_942),
    "adm-64": (295_136_454, 295_904_454),
    "adm-128": (420_505_606, 421_529_606),
    "adm-256": (552_814_086, 553_838_086),
}
"""Parameters of the published networks, without and with 1000 classes, counted in the networks that
the published code of improved- and guided-diffusion makes of the flags in its README, with learned
sigma. The first two are counted in diffusers' `UNet2DModel`, to which Ho et al.'s models were
ported."""

HEADS = {
    "ddpm-cifar10": {256: 1}, "iddpm-cifar10": {256: 4}, "adm-64": {384: 6, 768: 12},
    "adm-128": {1024: 4}, "adm-256": {1024: 16},
}  # fmt: skip
"""Heads of attention by the width of a level."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_that_of_its_paper(name):
    """The papers have neither the Wiener filter nor augmentation, which are defaults otherwise."""
    config, training = own(name), PRESETS[name].train
    for num_classes, count in zip((0, 1000), COUNTS[name], strict=False):
        # OpenAI's networks have no entry for "no class".
        none = 4 * config.width if num_classes else 0
        assert own_parameters(name, num_classes) - none == count
    assert (training["wiener"], training["augment"]) == (False, ())
    assert set(config.attention) <= {side(name) >> i for i in range(len(config.multipliers))}
    assert side(name) <= 64 or training["size"] == side(name)
    heads = HEADS.get(name, {})
    assert {width: config.heads_at(width) for width in heads} == heads


@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [
        *(("tiny", size, patch) for size, patch in [
            ((32, 32), 1), ((63, 64), 1), ((64, 64), 2), ((66, 65), 1), ((96, 96), 2),
            ((127, 128), 1), ((128, 128), 2), ((512, 256), 2), ((64, 256), 2), ((130, 130), 2),
        ]),
        *((name, (side, side), patch) for name in ("small", "base", "large") for side, patch in [
            (64, 1), (127, 1), (128, 2), (192, 2), (256, 4), (512, 8 if name == "large" else 4),
        ]),
        ("small", (512, 128), 2),
    ],
)  # fmt: skip
def test_presets_cut_larger_samples_into_patches(name, size, patch):
    """To 32 or 64 a side or more, where every side can be cut and the width holds a patch; not
    where the patch is given."""
    assert network(train(), name, size, 3).patch == patch
    assert network(train(width=8), name, size, 3).patch == 1
    if name == "tiny":
        assert network(train(width=64), name, size, 3).patch == patch
        assert network(train(), name, size, 1).patch == patch
    assert network(train(architecture={"patch": 1}), name, size, 3).patch == 1


@pytest.mark.parametrize("name", ["small", "base", "large"])
def test_patches_keep_the_cost_of_64_pixels(name):
    """And its levels: the network at 256 pixels differs only in its first and last layer."""
    small, large = (network(train(), name, (side, side), 3) for side in (64, 256))
    assert replace(large, patch=1) == small
    assert parameters(large, (256, 256)) < 1.02 * parameters(small, (64, 64))


SHAPES = [
    *((side,) for side in (8, 100, 512, 4096, 8192, 2**17)),
    *((side, side) for side in (2, 9, 28, 32, 63, 64, 96, 100, 128, 192, 256, 384, 500, 512)),
    *((64, 512), (512, 128), (33, 512), (31, 33), (20, 28), (256, 128)),
    *((side,) * 3 for side in (8, 16, 32, 48, 64, 128)),
]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 32, 33, 48, 64])
@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if not p.published])
def test_any_size_of_the_data_has_a_network_that_is_no_narrower_than_its_patches(name, channels):
    """The last layer can write noise of every dimension, and of x_0, which fills fewer, half."""
    target = PRESETS[name].train.get("target", "v")
    for size in SHAPES:
        space = Space(channels=channels, size=size)
        found, config = resolve_architecture(train(), name, space)
        if len(size) == 2 and max(size) <= 256:
            config.check(space)
        values = channels * config.patch ** len(size)
        if has_noise(target):
            assert NETWORKS[found].full_rank(config, space) == config
            assert config.width >= values
        elif values > 2 * config.width:  # only where attention would be over too many
            sides = [n for n in range(1, config.patch) if not any(side % n for side in size)]
            held = [n for n in sides if channels * n ** len(size) <= 2 * config.width]
            assert not held or vit.positions(held[-1], space) > vit.POSITIONS


@pytest.mark.parametrize(
    ("name", "size", "channels", "patch", "width"),
    [
        ("tiny", (64, 64), 8, 2, 32), ("tiny", (64, 64), 9, 1, 32), ("tiny", (64, 64), 33, 1, 64),
        ("slim", (64, 64), 4, 2, 16), ("slim", (64, 64), 5, 1, 16), ("slim", (64, 64), 40, 1, 48),
        ("tiny", (8192,), 4, 16, 64), ("tiny", (8192,), 5, 8, 64), ("tiny", (64,) * 3, 4, 2, 32),
        ("base", (8192,), 1, 1, PRESETS["base"].settings["width"]),
        ("vit-s", (256, 256), 3, 16, 384), ("vit-s", (512, 512), 3, 16, 384),
        ("vit-s", (256, 256), 4, 8, 384), ("vit-b", (512, 512), 1, 32, 768),
    ],
)  # fmt: skip
def test_channels_make_patches_smaller_and_then_networks_wider(name, size, channels, patch, width):
    _, config = resolve_architecture(train(), name, Space(channels=channels, size=size))
    assert (config.patch, config.width) == (patch, width)


@pytest.mark.parametrize(
    ("size", "patch", "multipliers"),
    [
        ((28, 28), 1, 3), ((32, 32), 1, 3), ((64, 64), 1, 4), ((128, 128), 1, 5), ((9, 9), 1, 1),
        ((30, 30), None, 2), ((32, 32), 2, 2), ((28, 28), 2, 2),
        ((300_001,), None, 1), ((2**18,), None, 12), ((2**20,), None, 14),
    ],
)  # fmt: skip
def test_levels_are_added_until_eight_pixels_or_patches(size, patch, multipliers):
    """Of a signal, until 8 patches, which are 16 values long, unless its side is odd."""
    given = {} if patch is None else {"patch": patch}
    name = "small" if patch == 1 else "tiny"
    assert len(network(train(architecture=given), name, size, 1).multipliers) == multipliers


def test_a_typed_size_that_a_preset_cannot_halve_is_refused():
    with pytest.raises(UsageError, match=r"--size 32 high x 30 wide.*multiple of 4"):
        network(train(preset="tiny", size=(32, 30)), "tiny", (32, 30), 1)
    with pytest.raises(UsageError, match="multiple of 4"):
        network(train(preset="tiny", size=(30, 30), architecture={"patch": 2}), "tiny", (30, 30), 1)
    assert len(network(train(preset="tiny"), "tiny", (30, 30), 1).multipliers) == 2
    for name, multiple in (("ddpm-celebahq-256", 32), ("adm-64", 8), ("adm-128", 16)):
        with pytest.raises(UsageError, match=f"a multiple of {multiple}"):
            network(train(), name, (60, 60), 3)
        config = network(train(), name, (3 * multiple, 5 * multiple), 3)
        assert config.multipliers == PRESETS[name].settings["multipliers"]


# -- width ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_any_width_has_a_u_net(name):
    for width, groups in {2: 1, 7: 1, 16: 1, 32: 2, 37: 1, 40: 2, 48: 3, 176: 11}.items():
        config = network(train(width=width), name, (32, 32), 3)
        assert (config.width, config.groups) == (width, groups)
        assert parameters(config) > 0


def test_groups_and_heads_suit_the_width_unless_they_are_given():
    for width, head_width in ((128, 64), (40, 40), (96, 64), (36, 36), (200, 50)):
        assert network(train(width=width), "base", (32, 32), 3).head_width == head_width
    for width, heads in ((42, 4), (43, 2)):
        assert network(train(width=width), "iddpm-cifar10", (32, 32), 3).heads == heads
    assert network(train(width=40), "iddpm-cifar10", (32, 32), 3).groups == 20
    config = network(train(width=40, architecture={"groups": 4, "heads": 5}), "base", (32, 32), 3)
    assert (config.groups, config.heads, config.head_width) == (4, 5, None)
    config = network(train(architecture={"width": 64, "multipliers": [1]}), "tiny", (28, 28), 1)
    assert (config.width, config.multipliers) == (64, (1,))
    assert network(train(width=40, architecture={"width": 40}), "tiny", (28, 28), 1).width == 40


@pytest.mark.parametrize(
    ("width", "architecture", "said"),
    [
        (40, {"groups": 32}, "a level of 40 channels is not a multiple of 32 groups"),
        (40, {"heads": 3}, "cannot be cut into its attention heads"),
        (None, {"heads": 3, "head_width": 8}, "heads and head_width exclude each other"),
        (40, {"width": 64}, r"\[unet\] width = 64 differs from width = 40"),
        (None, {"widht": 64}, r"there is no setting 'widht'.*'width'"),
        *((None, wrong, *wrong) for wrong in ({"groups": 0}, {"heads": "4"}, {"width": 0})),
    ],
)
def test_a_setting_of_a_network_that_is_wrong_is_named(width, architecture, said):
    with pytest.raises(UsageError, match=said):
        network(train(width=width, architecture=architecture), "tiny", (32, 32), 3)


# -- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "device", "name"),
    [
        ((32, 32), "cuda", "small"), ((32, 64), "cuda", "small"), ((64, 32), "mps", "small"),
        ((33, 64), "cuda", "base"), ((64, 64), "cuda", "base"), ((32, 32, 64), "cuda", "small"),
        ((64, 64), "cpu", "tiny"),
    ],
)  # fmt: skip
def test_the_preset_follows_the_device_and_the_shorter_side(size, device, name):
    """Unless it, or a network, is named."""
    space = Space(channels=1, size=size)
    assert choose(train(), space, device) == name
    assert choose(train(preset="large"), space, device) == "large"
    assert choose(train(network="vit"), space, device) == "vit-s"
    assert choose(train(network="vit", preset="vit-b"), space, device) == "vit-b"


@pytest.mark.parametrize(("name", "heads"), [("vit-s", 6), ("vit-b", 12)])
def test_transformers_have_256_patches_and_heads_of_64(name, heads):
    for size in (32, 64, 128, 256):
        config = network(train(), name, (size, size), 3)
        assert (config.patch, config.heads, config.depth) == (size // 16, heads, 12)
        assert config.bottleneck == (128 if size >= 128 else None)


def test_the_baseline_has_the_values_of_ho_et_al():
    preset = PRESETS["ddpm-cifar10"]
    training = {"schedule": "linear", "target": "eps", "loss": "simple", "variance": "large",
                "lr": 2e-4, "batch_size": 128, "warmup": 5000, "ema_decay": 0.9999}  # fmt: skip
    assert training.items() <= preset.train.items()
    assert (preset.settings["dropout"], preset.settings["attention"]) == (0.1, (16,))
