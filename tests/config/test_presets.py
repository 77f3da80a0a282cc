"""Named networks."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import Plan

from diffuse_cli.config.options import from_dict
from diffuse_cli.config.presets import (
    PRESETS,
    choose,
    resolve_architecture,
    translate_network_errors,
)
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import LOSSES, SCHEDULES, TARGETS, VARIANCES, WEIGHTINGS, Conditions, Space
from diffuse_cli.core.networks import NETWORKS, count_parameters, vit
from diffuse_cli.core.networks.unet import Config, check
from diffuse_cli.core.parameterization import has_noise, output_channels
from diffuse_cli.system.errors import UsageError


def train(**options) -> TrainConfig:
    return TrainConfig(data="images", **options)


def network(config: TrainConfig, name: str, size: tuple[int, int], channels: int) -> Any:
    """The network of a preset for images, which it can be built for."""
    space = Space(channels=channels, size=size)
    found, settings = resolve_architecture(config, name, space)
    assert found == PRESETS[name].network
    with translate_network_errors(found):
        (check if found == "unet" else vit.check)(settings, space)
    return settings


def parameters(
    config: Any,
    size: tuple[int, int] = (32, 32),
    out_channels: int | None = None,
    num_classes: int = 0,
) -> int:
    made = Plan(
        config,
        Space(channels=3, size=size),
        Conditions(classes=tuple(map(str, range(num_classes)))),
        out_channels or 3,
        "unet" if isinstance(config, Config) else "vit",
    )
    with torch.device("meta"):
        return count_parameters(made.build())


SIDES = {
    "ddpm-celebahq-256": 256, "iddpm-imagenet64": 64, "adm-64": 64, "adm-128": 128, "adm-256": 256,
}  # fmt: skip
"""The size of a preset's images, where it is not 32."""


def side(name: str) -> int:
    return SIDES.get(name, 32)


def own(name: str) -> Any:
    """A preset's network at its own size."""
    return network(train(), name, (side(name), side(name)), 3)


def own_parameters(name: str, num_classes: int = 0) -> int:
    """The same with the output that its variance needs, counted."""
    out = output_channels(PRESETS[name].train.get("variance", "small"), 3)
    return parameters(own(name), (side(name), side(name)), out, num_classes)


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_help_says_how_many_parameters(name: str):
    said = re.match(r"([\d.]+) M(?: with (\d+) classes)?", PRESETS[name].help)
    assert said is not None
    digits = len(said[1].partition(".")[2])
    millions = own_parameters(name, int(said[2] or 0)) / 1e6
    assert f"{millions:.{digits}f}" == said[1]


COUNTS = {
    ("ddpm-cifar10", 0): 35_746_307,
    ("ddpm-celebahq-256", 0): 113_673_219,
    ("iddpm-cifar10", 0): 52_546_438,
    ("iddpm-imagenet64", 0): 121_063_942,
    ("iddpm-imagenet64", 1000): 121_575_942,
    ("adm-64", 0): 295_136_454,
    ("adm-64", 1000): 295_904_454,
    ("adm-128", 0): 420_505_606,
    ("adm-128", 1000): 421_529_606,
    ("adm-256", 0): 552_814_086,
    ("adm-256", 1000): 553_838_086,
}
"""Parameters of the published networks, counted in the networks that the published code of
improved- and guided-diffusion makes of the flags in its README, with learned sigma. The first two
are counted in diffusers' `UNet2DModel`, to which Ho et al.'s models were ported."""


@pytest.mark.parametrize(("name", "num_classes"), list(COUNTS))
def test_a_published_network_has_its_parameters(name: str, num_classes: int):
    # OpenAI's networks have no entry for "no class".
    none = 4 * own(name).width if num_classes else 0
    assert own_parameters(name, num_classes) - none == COUNTS[name, num_classes]


def test_every_published_network_is_counted():
    assert {name for name, _ in COUNTS} == {n for n, p in PRESETS.items() if p.published}


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.published])
def test_a_published_network_learns_from_unchanged_images_without_a_filter(name: str):
    """The papers have neither the Wiener filter nor augmentation, which are defaults otherwise."""
    training = PRESETS[name].train
    assert (training["wiener"], training["augment"]) == (False, ())


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.published])
def test_a_published_network_has_attention_where_it_is_named(name: str):
    config = own(name)
    levels = {side(name) >> i for i in range(len(config.multipliers))}
    assert set(config.attention) <= levels
    assert side(name) <= 64 or PRESETS[name].train["size"] == side(name)


@pytest.mark.parametrize(
    ("name", "width", "heads"),
    [
        ("ddpm-cifar10", 256, 1),
        ("iddpm-cifar10", 256, 4),
        ("adm-64", 384, 6),
        ("adm-64", 768, 12),
        ("adm-128", 1024, 4),
        ("adm-256", 1024, 16),
    ],
)
def test_a_published_network_has_its_heads(name: str, width: int, heads: int):
    assert own(name).heads_at(width) == heads


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
    assert config.loss is None or config.loss in LOSSES
    assert config.lr is not None


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if not p.published])
@pytest.mark.parametrize(
    "size", [(28, 28), (32, 32), (64, 64), (31, 33), (8, 8), (2, 2), (20, 28), (256, 128)], ids=str
)
def test_a_size_from_the_data_always_has_a_network(name: str, size: tuple[int, int]):
    for channels in (1, 3, 4):
        config = network(train(), name, size, channels)
        levels = len(config.multipliers) if isinstance(config, Config) else 1
        assert not any(side % (config.patch * 2 ** (levels - 1)) for side in size)


@pytest.mark.parametrize(
    ("size", "levels"), [((28, 28), 3), ((32, 32), 3), ((64, 64), 4), ((128, 128), 5), ((9, 9), 1)]
)
def test_levels_are_added_until_eight_pixels(size: tuple[int, int], levels: int):
    whole = train(architecture={"patch": 1})
    assert len(network(whole, "small", size, 1).multipliers) == levels


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
def test_presets_cut_larger_samples_into_patches(name: str, size: tuple[int, int], patch: int):
    """To 32 or 64 a side or more, where every side can be cut and the width holds a patch; not
    where the patch is given."""
    assert network(train(), name, size, 3).patch == patch
    assert network(train(width=8), name, size, 3).patch == 1
    assert network(train(architecture={"patch": 1}), name, size, 3).patch == 1


@pytest.mark.parametrize("name", ["small", "base", "large"])
def test_patches_keep_the_cost_of_64_pixels(name: str):
    """And its levels: the network at 256 pixels differs only in its first and last layer."""
    small, large = (network(train(), name, (side, side), 3) for side in (64, 256))
    assert replace(large, patch=1) == small
    assert parameters(large, (256, 256)) < 1.02 * parameters(small, (64, 64))


def test_sounds_have_no_patches_at_the_presets_of_a_gpu():
    _, config = resolve_architecture(train(), "base", Space(channels=1, size=(8192,)))
    assert config.patch == 1


SHAPES = [
    *((side,) for side in (8, 100, 512, 4096, 8192, 2**17)),
    *((side, side) for side in (2, 9, 28, 32, 63, 64, 96, 100, 128, 192, 256, 384, 500, 512)),
    *((64, 512), (512, 128), (33, 512)),
    *((side,) * 3 for side in (8, 16, 32, 48, 64, 128)),
]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 32, 33, 48, 64])
@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if not p.published])
def test_no_default_is_narrower_than_its_patches(name: str, channels: int):
    """The last layer can write noise of every dimension, and of x_0, which fills fewer, half."""
    target = PRESETS[name].train.get("target", "v")
    for size in SHAPES:
        space = Space(channels=channels, size=size)
        found, config = resolve_architecture(train(), name, space)
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
        ("vit-s", (256, 256), 3, 16, 384), ("vit-s", (512, 512), 3, 16, 384),
        ("vit-s", (256, 256), 4, 8, 384), ("vit-b", (512, 512), 1, 32, 768),
    ],
)  # fmt: skip
def test_channels_make_patches_smaller_and_then_networks_wider(name, size, channels, patch, width):
    _, config = resolve_architecture(train(), name, Space(channels=channels, size=size))
    assert (config.patch, config.width) == (patch, width)


def test_a_typed_size_that_a_typed_preset_cannot_halve_is_refused():
    with pytest.raises(UsageError, match="--size 30x30 cannot be halved 2 times"):
        network(train(preset="tiny", size=30), "tiny", (30, 30), 1)
    with pytest.raises(UsageError, match="multiple of 4"):
        network(train(preset="tiny", size=(32, 30)), "tiny", (32, 30), 1)
    assert len(network(train(size=30), "tiny", (30, 30), 1).multipliers) == 2
    assert len(network(train(preset="tiny"), "tiny", (30, 30), 1).multipliers) == 2


@pytest.mark.parametrize(("side", "levels"), [(300_001, 1), (2**18, 12), (2**20, 14)])
def test_the_longest_signals_have_levels(side, levels):
    """Of at most 8 patches, which are 16 values long, or of an odd side."""
    made = network(train(), "tiny", (side,), 1)
    assert len(made.multipliers) == levels


def test_a_published_network_keeps_its_levels():
    with pytest.raises(UsageError, match="Choose a size"):
        network(train(), "ddpm-cifar10", (28, 28), 1)


@pytest.mark.parametrize(
    ("name", "multiple"), [("ddpm-celebahq-256", 32), ("adm-64", 8), ("adm-128", 16)]
)
def test_a_size_that_a_published_network_cannot_halve_is_refused(name: str, multiple: int):
    with pytest.raises(UsageError, match=f"a size that is a multiple of {multiple}"):
        network(train(), name, (60, 60), 3)
    config = network(train(), name, (3 * multiple, 5 * multiple), 3)
    assert config.multipliers == PRESETS[name].settings["multipliers"]


# -- width ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "groups"), [(2, 1), (7, 1), (16, 1), (32, 2), (37, 1), (40, 2), (48, 3), (176, 11)]
)
@pytest.mark.parametrize("name", ["tiny", "base"])
def test_any_width_has_a_u_net(name: str, width: int, groups: int):
    config = network(train(width=width), name, (32, 32), 3)
    assert (config.width, config.groups) == (width, groups)
    assert parameters(config) > 0


def test_heads_are_as_wide_as_the_preset_says_or_the_largest_divisor():
    for width, head_width in ((128, 64), (40, 40), (96, 64), (36, 36), (200, 50)):
        assert network(train(width=width), "base", (32, 32), 3).head_width == head_width
    assert network(train(width=42), "iddpm-cifar10", (32, 32), 3).heads == 4
    assert network(train(width=43), "iddpm-cifar10", (32, 32), 3).heads == 2


def test_the_groups_of_a_published_network_are_those_of_the_paper():
    assert network(train(), "ddpm-cifar10", (32, 32), 3).groups == 32
    assert network(train(width=40), "iddpm-cifar10", (32, 32), 3).groups == 20


def test_groups_and_heads_that_are_given_stand():
    config = network(train(width=40, architecture={"groups": 4, "heads": 5}), "base", (32, 32), 3)
    assert (config.groups, config.heads, config.head_width) == (4, 5, None)
    with pytest.raises(UsageError, match="a level of 40 channels is not a multiple of 32 groups"):
        network(train(width=40, architecture={"groups": 32}), "tiny", (32, 32), 3)
    with pytest.raises(UsageError, match="cannot be cut into its attention heads"):
        network(train(width=40, architecture={"heads": 3}), "tiny", (32, 32), 3)
    with pytest.raises(UsageError, match="heads and head_width exclude each other"):
        network(train(architecture={"heads": 3, "head_width": 8}), "tiny", (32, 32), 3)


def test_two_widths_that_differ_are_refused():
    assert network(train(width=40, architecture={"width": 40}), "tiny", (28, 28), 1).width == 40
    with pytest.raises(UsageError, match=r"\[unet\] width = 64 differs from width = 40"):
        network(train(width=40, architecture={"width": 64}), "tiny", (28, 28), 1)


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"groups": "many"}, {"heads": "4"}, {"width": 0}])
def test_a_field_that_is_wrong_is_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        network(train(architecture=wrong), "tiny", (28, 28), 1)


def test_fields_of_the_configuration_stand_over_the_preset():
    config = network(train(architecture={"width": 64, "multipliers": [1]}), "tiny", (28, 28), 1)
    assert (config.width, config.multipliers) == (64, (1,))
    with pytest.raises(UsageError, match=r"there is no setting 'widht'.*'width'"):
        network(train(architecture={"widht": 64}), "tiny", (28, 28), 1)


def test_the_machine_chooses_where_nothing_is_named():
    assert choose(train(), Space(channels=3, size=(64, 64)), "cpu") == "tiny"
    for size in ((28, 28), (64, 128)):
        space = Space(channels=3, size=size)
        assert choose(train(), space, "cuda") in PRESETS
        assert choose(train(), space, "mps") in PRESETS
        assert choose(train(preset="large"), space, "cpu") == "large"


def test_a_network_stands_for_its_first_preset():
    space = Space(channels=3, size=(64, 64))
    assert {choose(train(network="vit"), space, device) for device in ("cpu", "cuda")} == {"vit-s"}
    assert choose(train(network="unet"), space, "cpu") == "tiny"
    assert choose(train(network="vit", preset="vit-b"), space, "cpu") == "vit-b"
    with pytest.raises(UsageError, match="--preset vit-s is a 'vit', not a 'unet'"):
        network(train(network="unet"), "vit-s", (64, 64), 3)
    with pytest.raises(UsageError, match="a width of 40 cannot be cut into heads of 64"):
        network(train(width=40, architecture={"head_width": 64}), "vit-s", (64, 64), 3)


@pytest.mark.parametrize(("name", "heads"), [("vit-s", 6), ("vit-b", 12)])
def test_transformers_have_256_patches_and_heads_of_64(name: str, heads: int):
    for size in (32, 64, 128, 256):
        config = network(train(), name, (size, size), 3)
        assert (config.patch, config.heads, config.depth) == (size // 16, heads, 12)
        assert config.bottleneck == (128 if size >= 128 else None)


def test_an_unknown_preset_is_a_usage_error():
    with pytest.raises(UsageError, match=r"--preset.*Did you mean 'small'"):
        network(train(), "smal", (28, 28), 1)


def test_patches_count_as_pixels_of_the_levels():
    given = {"patch": 2}
    config = network(TrainConfig(data="x", architecture=given), "tiny", (32, 32), 1)
    assert (config.patch, config.multipliers, config.attends((32, 32))) == (
        2,
        (1, 1),
        [False, False],
    )
    odd = network(TrainConfig(data="x", architecture=given), "tiny", (28, 28), 1)
    assert odd.multipliers == (1, 1)
    with pytest.raises(UsageError, match="multiple of 4"):
        network(
            TrainConfig(data="x", architecture=given, size=(30, 30), preset="tiny"),
            "tiny",
            (30, 30),
            1,
        )


@pytest.mark.parametrize(
    ("size", "device", "name"),
    [
        ((32, 32), "cuda", "small"),
        ((32, 64), "cuda", "small"),
        ((64, 32), "mps", "small"),
        ((33, 64), "cuda", "base"),
        ((64, 64), "cuda", "base"),
        ((32, 32, 64), "cuda", "small"),
        ((64, 64), "cpu", "tiny"),
    ],
)
def test_the_preset_follows_the_device_and_the_shorter_side(size, device, name):
    assert choose(train(), Space(channels=1, size=size), device) == name


def test_networks_of_one_kind_have_the_rate_of_their_width():
    """Twice the width, half of the rate: `slim` is `tiny` with half of its channels."""
    tiny, slim = PRESETS["tiny"], PRESETS["slim"]
    assert tiny.settings["width"] == 2 * slim.settings["width"]
    assert slim.train["lr"] == 2 * tiny.train["lr"] == 8e-3
