"""One configuration from a command line, a file and the data, and what is chosen beside them."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MODEL, WHOLE
from lab import QUICK
from PIL import Image

from diffuse_cli.config.presets import DEFAULT_RATE, PRESETS, Preset
from diffuse_cli.config.train_options import WEIGHTED, to_file
from diffuse_cli.core import LOSSES, VARIANCES, WEIGHTINGS, Conditions, Space
from diffuse_cli.core.losses import OF_LEARNED
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.parameterization import LEARNED, MEASURED
from diffuse_cli.core.settings import Settings, setting
from diffuse_cli.models.activation_memory import count_kept_bytes
from diffuse_cli.system.errors import UsageError
from diffuse_cli.training import decisions
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config
from diffuse_cli.training.time_budget import ENOUGH

GREY = Space(channels=1, size=(8, 8))
NAMES = tuple(f"class {k}" for k in range(1000))


def planned(typed, filed=None, num_classes=0, space=GREY):
    """The complete configuration, and what the model is."""
    config = configure({"data": "images", **typed}, filed)
    return complete_config(config, space, Conditions(classes=NAMES[:num_classes]))


def made(typed, filed=None, num_classes=0):
    return planned(typed, filed, num_classes)[0]


def without(values):
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("variance", sorted(set(VARIANCES) - MEASURED))
def test_loss_and_weighting_follow_from_the_variance(variance):
    for loss, weighting in product((None, *LOSSES), (None, *WEIGHTINGS)):
        typed = without({"variance": variance, "loss": loss, "weighting": weighting})
        weighted = loss in WEIGHTED and weighting not in (None, "none")
        if weighted or (loss in OF_LEARNED and variance not in LEARNED):
            with pytest.raises(UsageError):
                made(typed)
            continue
        config, blueprint = planned(typed)
        assert config.loss == (loss or ("hybrid" if variance == "learned" else "simple"))
        assert config.weighting == (weighting or ("none" if loss == "vlb" else "sigmoid"))
        assert blueprint.out_channels == (2 if variance == "learned" else 1)
        assert complete_config(config, GREY, Conditions()) == (config, blueprint)


@pytest.mark.parametrize(
    ("filed", "typed", "found"),
    [
        ("variance=learned", "", "hybrid sigmoid"),
        ("variance=learned loss=simple", "", "simple sigmoid"),
        ("variance=learned loss=hybrid weighting=p2", "", "hybrid p2"),
        ("variance=learned loss=hybrid", "variance=small", "simple sigmoid"),
        ("variance=learned loss=hybrid weighting=p2", "variance=large", "simple p2"),
        ("loss=simple", "variance=learned", "hybrid sigmoid"),
        ("loss=simple", "variance=large", "simple sigmoid"),
        ("variance=learned loss=hybrid", "variance=learned", "hybrid sigmoid"),
        ("variance=learned loss=vlb weighting=none", "variance=small", "vlb none"),
        ("variance=learned loss=hybrid", "loss=simple", "simple sigmoid"),
        ("loss=vlb weighting=none", "loss=simple", "simple sigmoid"),
        ("loss=simple weighting=p2", "loss=vlb", "vlb none"),
        ("loss=simple weighting=p2 variance=learned", "loss=hybrid", "hybrid sigmoid"),
        ("loss=simple variance=learned", "loss=hybrid weighting=none", "hybrid none"),
    ],
)
def test_what_is_typed_wins_and_brings_its_own(filed, typed, found):
    read = [dict(pair.split("=") for pair in words.split()) for words in (typed, filed)]
    config = made(*read)
    assert f"{config.loss} {config.weighting}" == found


@pytest.mark.parametrize("variance", ["small", "learned"])
@pytest.mark.parametrize(("num_classes", "channels"), [(0, 3), (2, 1), (1000, 3)])
def test_the_network_has_the_channels_and_classes_it_needs(variance, num_classes, channels):
    typed = {"variance": variance, "classes": num_classes > 0}
    space = Space(channels=channels, size=(8, 8))
    config, blueprint = planned(typed, None, num_classes, space)
    shapes = blueprint.shapes
    width = shapes["conv_in.weight"][0]
    assert shapes["conv_in.weight"][1] == channels
    assert shapes["conv_out.bias"] == (channels * (2 if variance == "learned" else 1),)
    label = (num_classes + 1, 4 * width) if num_classes else None
    assert shapes.get("class_embedding.weight") == label
    again = type(config).from_dict(config.to_dict())
    assert complete_config(again, space, blueprint.conditions) == (config, blueprint)


@pytest.mark.parametrize("preset", [None, "vit-s", "ddpm-cifar10", "iddpm-imagenet64"])
def test_muon_is_the_default_and_published_presets_keep_their_adamw(preset):
    space = Space(channels=3, size=(64, 64))
    found = [
        planned(without({"preset": preset, "optimizer": typed}), space=space)[0].optimizer
        for typed in (None, "muon", "adamw")
    ]
    published = preset is not None and PRESETS[preset].published
    assert found == ["adamw" if published else "muon", "muon", "adamw"]


def test_label_dropout_goes_with_classes():
    with pytest.raises(UsageError, match="--label-dropout needs --classes"):
        made({"label_dropout": 0.2, "classes": False}, {"classes": True})
    assert made({"label_dropout": 0.2}, {"classes": True}).label_dropout == 0.2
    assert made({}, {"label_dropout": 0.1}).classes is False


def test_facts_of_the_data_in_a_table_of_version_0_1_give_way_to_the_data():
    """They stood there beside the settings, in files that --config and --init may still read."""
    facts = {"size": [8, 8], "channels": 1, "out_channels": 1, "num_classes": 3}
    config, blueprint = planned({}, {"classes": True, "unet": {**facts, "width": 8}}, 2)
    assert not facts.keys() & config.architecture.keys()
    assert (config.width, blueprint.conditions.num_classes) == (8, 2)


def test_a_typed_variance_or_classes_bring_their_channels_over_a_file():
    filed = to_file(made({}, {}))
    assert planned({"variance": "learned"}, filed)[1].out_channels == 2
    learned = to_file(made({"variance": "learned"}, {}))
    assert planned({"variance": "large"}, learned)[1].out_channels == 1
    assert planned({"classes": True}, filed, 4)[1].shapes["class_embedding.weight"][0] == 5
    classes = to_file(made({"classes": True}, {}, num_classes=4))
    assert "class_embedding.weight" not in planned({"classes": False}, classes)[1].shapes


@pytest.mark.parametrize("given", [{"preset": "vit-s"}, {"network": "vit"}])
def test_a_transformer_is_trained_as_its_preset_says(given):
    config, blueprint = planned(given, {}, 0)
    assert (config.preset, config.network, blueprint.network) == ("vit-s", "vit", "vit")
    assert (config.schedule, config.target, config.weighting) == ("flow", "x0", "jit")
    assert config.lr == PRESETS["vit-s"].train["lr"]
    assert planned({**given, "target": "v"}, {}, 0)[0].target == "v"


def test_what_a_network_is_follows_its_size_and_width():
    at_64, at_128 = (Space(channels=3, size=(side, side)) for side in (64, 128))
    filed = to_file(planned({"preset": "vit-s", "size": 64}, space=at_64)[0])
    assert filed["vit"]["patch"] == 4
    assert planned({}, filed, space=at_64)[1].config.patch == 4
    larger = planned({"size": 128}, filed, space=at_128)[1].config
    assert (larger.patch, larger.bottleneck) == (8, 128)
    narrow = planned({"width": 96}, filed, space=at_64)[1].config
    assert (narrow.width, narrow.head_width, narrow.patch) == (96, 48, 4)
    cut = {"preset": "vit-s", "vit": {"patch": 8}}
    assert planned({"size": 64}, cut, space=at_64)[1].config.patch == 8
    for own, kept in ((None, True), (64, True), (32, False)):
        levels = without({"unet": {"multipliers": [1, 3]}, "size": own})
        config = planned({"size": 64}, levels, space=at_64)[1].config
        assert (config.multipliers == (1, 3)) is kept


@dataclass(frozen=True, kw_only=True)
class Wide(Settings):
    width: int = setting(low=1)


class Told(torch.nn.Linear):
    """A network that must be told a class."""

    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x, t, label):
        return super().forward(x) + label.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("typed", "compiled"),
    [
        ({}, True), ({"steps": 4999}, False), ({"minutes": 20}, True), ({"minutes": 19}, False),
        ({"compile": False}, False), ({"steps": 1, "compile": True}, True),
    ],
)  # fmt: skip
def test_long_runs_on_a_gpu_with_triton_are_compiled(monkeypatch, typed, compiled):
    monkeypatch.setattr(decisions.devices, "device_type", lambda wanted: "cuda")
    monkeypatch.setattr(decisions.devices, "resolve_precision", lambda *_: "bf16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    config = made(typed)
    assert config.compile is compiled
    assert made({}, to_file(config)).compile is compiled
    # Once decided it stays, whatever the length becomes.
    later = dataclasses.replace(config, steps=10**6, minutes=None)
    assert complete_config(later, GREY, Conditions())[0].compile is compiled
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert made(typed).compile is typed.get("compile", False)


@pytest.mark.parametrize(
    ("typed", "filed"),
    [({"minutes": 5}, {"steps": 2000}), ({"steps": 7}, {"minutes": 5})],
)
def test_of_steps_and_minutes_the_typed_one_counts(typed, filed):
    config = made(typed, filed)
    assert (config.steps, config.minutes) == (typed.get("steps"), typed.get("minutes"))


def test_minutes_choose_the_batch_beside_steps_of_the_same_file(diffuse, images, step_takes):
    """As the file of a run has both, but with a batch size."""
    step_takes(0.1)
    Path("both.toml").write_text("steps = 2000\nminutes = 5\n")
    ran = diffuse("train", images, "--config", "both.toml", "--dry-run", "--json").ok()
    assert ran.json["config"]["batch_size"] in ENOUGH


def test_nothing_is_compiled_by_default_on_a_cpu():
    assert made({}).compile is made({"minutes": 600}).compile is False
    assert made({"compile": True}).compile is True


def test_a_width_without_a_default_is_a_width(monkeypatch):
    """Of a network from elsewhere, with a preset of it that says little."""
    module = SimpleNamespace(Config=Wide, build=lambda *_: Told(), describe=lambda *_: [])
    monkeypatch.setitem(sys.modules, "wide", module)
    monkeypatch.setitem(NETWORKS.entries, "wide", "wide")
    monkeypatch.setitem(PRESETS.entries, "plain", Preset("", {"width": 4}, {}, network="wide"))
    config, blueprint = planned({"preset": "plain"}, num_classes=2)
    assert (config.width, config.lr) == (4, DEFAULT_RATE)
    assert complete_config(config, GREY, blueprint.conditions)[0] == config
    assert count_kept_bytes(blueprint, False, False).total_bytes(2) > 0


def test_the_rate_of_a_model_follows_the_batch_size(model):
    assert made({"init": str(model)}).lr == 0.002
    assert made({"init": str(model), "batch_size": 32}).lr == pytest.approx(0.004)
    assert made({"init": str(model), "batch_size": 32, "lr": 0.01}).lr == 0.01


@pytest.mark.parametrize(
    ("count", "sizes", "warned"), [(8, 4, True), (9, 4, False), (99, 50, True), (100, 50, False)]
)
def test_a_few_images_of_many_sizes_may_not_belong_together(
    diffuse, step_takes, tmp_path, count, sizes, warned
):
    step_takes(1.0)
    for k in range(count):
        Image.new("RGB", (16 + k % sizes, 16)).save(tmp_path / f"{k}.png")
    ran = diffuse("train", tmp_path, "--config", QUICK, "--steps", 1, "--dry-run").ok()
    assert (f"only {count} images of {sizes} sizes" in ran.err) == warned


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("images", "--classes --label-dropout 0.3 --variance learned --timestep-draw importance"),
        ("images", "--given {negatives} --given-noise 0.1"),
        ("shades", "--condition-on level --condition-on side:label"),
    ],
)
def test_a_dry_run_that_is_fed_back_gives_the_same_model(diffuse, lab, untimed, data, options):
    line = ("train", lab[data], "--config", QUICK, "--steps", 2, *options.format_map(lab).split())
    Path("back.toml").write_text(diffuse(*line, "--dry-run").out)
    diffuse(*line).ok()
    diffuse("train", "--config", "back.toml", "-o", WHOLE).ok()
    assert MODEL.read_bytes() == WHOLE.read_bytes()
