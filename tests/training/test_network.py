"""The network of a training: its width, its buffers, and the memory that it takes."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODEL

from diffuse_cli.commands.convert.network_graph import draw_inputs
from diffuse_cli.config.options import to_toml
from diffuse_cli.config.presets import PRESETS, scale_learning_rate
from diffuse_cli.config.train_options import TrainConfig, from_file, to_file
from diffuse_cli.core import Conditions, Space
from diffuse_cli.core.networks import run_checkpointed, run_directly
from diffuse_cli.models import model_file
from diffuse_cli.models.activation_memory import count_kept_bytes
from diffuse_cli.system.errors import UsageError
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config, warn_of_narrow_network, with_batch_size
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.time_budget import choose_batch_size

IMAGES = Space(channels=1, size=(32, 32))


def planned(typed, filed=None, channels=1):
    """What `diffuse train` makes of a command line and a file, for images of 32x32."""
    config = configure({"data": "images", **typed}, filed)
    return complete_config(config, replace(IMAGES, channels=channels), Conditions())


def completed(typed, filed=None):
    return planned(typed, filed)[0]


def at_batch(config, batch_size, space=IMAGES):
    """A configuration with a batch size, and the rate of its network."""
    return with_batch_size(config, batch_size, space.dims)


def as_file(config):
    """What --dry-run prints, read by --config."""
    return tomllib.loads(to_toml(to_file(config, control=False)))


# -- width ----------------------------------------------------------------------------------------


def test_the_learning_rate_follows_the_width_and_the_batch():
    for name, preset in PRESETS.items():
        own, batch = preset.settings["width"], preset.train.get("batch_size", 64)
        rate = preset.train["lr"]
        for width, count, expected in (
            (None, batch, rate), (own, batch, rate), (2 * own, batch, rate / 2),
            (None, 4 * batch, rate * 2),
        ):  # fmt: skip
            assert scale_learning_rate(name, width, count) == pytest.approx(expected)


def test_a_short_run_has_small_batches():
    for images, least, batch in [
        (10, 8, 8), (2600, 8, 8), (3 * 2**13 - 1, 8, 8), (3 * 2**13, 8, 16), (3 * 2**14 - 1, 8, 16),
        (3 * 2**14, 8, 32), (3 * 2**16 - 1, 8, 32), (3 * 2**16, 8, 64), (1e9, 8, 64), (10, 12, 12),
    ]:  # fmt: skip
        assert choose_batch_size(images, float, least) == batch


def test_minutes_leave_the_batch_open_and_a_typed_one_does_not():
    plain = completed({"minutes": 1.0})
    assert plain.batch_size is None
    assert plain.lr is None
    typed = completed({"minutes": 1.0, "batch_size": 16})
    assert typed.batch_size == 16
    assert typed.lr == pytest.approx(PRESETS["tiny"].train["lr"] / 2)
    assert completed({"steps": 5}).batch_size == 64
    assert at_batch(plain, 16).lr == typed.lr
    assert at_batch(completed({"minutes": 1.0, "lr": 0.5}), 16).lr == 0.5


@pytest.mark.parametrize("size", [(64,), (32, 32), (16, 16, 16)])
def test_minutes_and_steps_have_the_same_rate(size):
    space = Space(channels=1, size=size, medium="array")
    given = {"data": "x", "preset": "tiny", "medium": "array"}
    kinds = {"own": {}, "typed": {"width": 40}, "filed": {"architecture": {"width": 40}}}
    rates = {}
    for kind, more in kinds.items():
        steps, minutes = (
            complete_config(configure({**given, **more, **time}), space, Conditions())[0]
            for time in ({"steps": 5}, {"minutes": 1.0})
        )
        assert at_batch(minutes, 64, space).lr == steps.lr
        rates[kind] = steps.lr, steps.width
    assert rates["own"][0] == PRESETS["tiny"].train["lr"]
    assert rates["typed"] == rates["filed"] == (pytest.approx(math.prod(rates["own"]) / 40), 40)


def test_the_width_is_the_one_dial():
    config = completed({"preset": "tiny", "width": 40})
    assert config.width == config.architecture["width"] == 40
    rate = PRESETS["tiny"].train["lr"] * PRESETS["tiny"].settings["width"] / 40
    assert config.lr == pytest.approx(rate)
    assert config.architecture["groups"] == 2
    assert completed({"preset": "tiny", "width": 40, "lr": 0.5}).lr == 0.5
    config = completed({"preset": "small"})
    assert (config.width, config.lr) == (64, PRESETS["small"].train["lr"])


def narrow(typed, filed=None, channels=3):
    """The warnings of a network that is too narrow for noise in every dimension."""
    asked = configure({"data": "images", **typed}, filed)
    blueprint = planned(typed, filed, channels)[1]
    return [notice.text for notice in warn_of_narrow_network(asked, blueprint)]


@pytest.mark.parametrize(
    ("typed", "filed", "channels", "way", "then"),
    [
        ({}, {"unet": {"patch": 4}}, 3, "Set [unet] patch = 2 in --config",
         ({}, {"unet": {"patch": 2}})),
        ({"width": 8}, None, 16, "Set --width 16", ({"width": 16}, None)),
        ({}, {"unet": {"width": 8}}, 12, "Set [unet] width = 16 in --config",
         ({}, {"unet": {"width": 16}})),
        ({}, {"unet": {"width": 8, "patch": 2}}, 9,
         "Set [unet] patch = 1 in --config and [unet] width = 16 in --config",
         ({}, {"unet": {"width": 16, "patch": 1}})),
        ({"preset": "vit-s", "target": "eps"}, {"vit": {"patch": 16}}, 3,
         "Set [vit] patch = 4 in --config",
         ({"preset": "vit-s", "target": "eps"}, {"vit": {"patch": 4}})),
        ({"preset": "vit-s", "target": "v"}, {"vit": {"patch": 1, "bottleneck": 5}}, 12,
         "Set [vit] bottleneck = 12 in --config",
         ({"preset": "vit-s", "target": "v"}, {"vit": {"patch": 1, "bottleneck": 12}})),
    ],
)  # fmt: skip
def test_a_network_that_cannot_predict_all_noise_is_warned_of(typed, filed, channels, way, then):
    assert not narrow({"target": "x0"}, {"unet": {"patch": 4}})  # it need not predict noise
    (text,) = narrow(typed, filed, channels)
    assert text.endswith(f"samples will stay noisy. {way}")
    assert not narrow(*then, channels)


def test_train_warns_of_a_narrow_network_once_and_not_when_it_goes_on(
    diffuse, images, recipe, tmp_path
):
    path = tmp_path / "patches.toml"
    path.write_text(f"{recipe.read_text()}patch = 4\n")
    line = ("train", images, "--config", path, "-o", "old.safetensors")
    ran = diffuse(*line, "--steps", 1).ok()
    assert ran.err.count("warning: the network is too narrow") == 1
    assert "Set [unet] patch = 2 in --config" in ran.err
    assert "narrow" not in diffuse(*line[:2], "--resume", "--steps", 2, *line[-2:]).err
    again = ("train", images, "--init", "old.safetensors", "--steps", 1)
    assert "Use a model trained with [unet] patch = 2" in diffuse(*again).err


@pytest.mark.parametrize(("preset", "width"), [("tiny", 24), ("base", 40), ("iddpm-cifar10", 32)])
def test_what_dry_run_prints_gives_the_same_network_again(preset, width):
    config = completed({"preset": preset, "width": width})
    assert completed({}, as_file(config)) == config


def shape(config):
    return tuple(config.architecture[name] for name in ("width", "groups", "head_width"))


def test_a_typed_width_stands_over_a_file():
    filed = {"preset": "base", "lr": 0.5, "unet": {"width": 8, "groups": 4, "head_width": 4}}
    assert shape(completed({"width": 12}, filed)) == (12, 4, 4)
    assert completed({"width": 12}, filed).lr == 0.5
    assert shape(completed({"width": 14}, filed)) == (14, 1, 28)
    printed = as_file(completed({"preset": "base", "width": 40}))
    assert shape(completed({"width": 64}, printed)) == shape(
        completed({"preset": "base", "width": 64})
    )
    filed = as_file(completed({"preset": "tiny", "width": 40}))
    assert completed({"preset": "small"}, filed).width == 64  # a preset brings its own
    assert completed({"preset": "tiny"}, filed).width == 40


def test_two_widths_in_a_file_that_differ_are_refused():
    with pytest.raises(UsageError, match=r"\[unet\] width = 24 differs from width = 40"):
        completed({}, {"preset": "tiny", "size": 32, "width": 40, "unet": {"width": 24}})


def test_a_run_goes_on_and_starts_others_with_its_own_width(train, diffuse, images):
    assert train("--steps", 1, "--width", 12).code == 0
    config = model_file.load(MODEL).blueprint.config
    assert (config.width, config.groups) == (12, 4)
    assert diffuse("train", images, "--resume", "--width", 12).code == 0
    said = "--width 16 differs from the run's 12"
    diffuse("train", images, "--resume", "--width", 16).fails(2, said)
    start = ["train", images, "--init", MODEL, "--steps", 1, "-q", "-o"]
    for more in (("same.safetensors", "--width", 12), ("none.safetensors",)):
        assert diffuse(*start, *more).code == 0
        assert model_file.load(more[0]).blueprint.config == config
    diffuse(*start, "other.safetensors", "--width", 16).fails(2, "another network")


# -- Fourier frequencies --------------------------------------------------------------------------


def test_fourier_frequencies_are_drawn_by_the_seed_and_kept(train, recipe, tmp_path):
    """They come with the model, averaged or not."""
    path = tmp_path / "fourier.toml"
    path.write_text(f'{recipe.read_text()}time_embedding = "fourier"\n')
    train("--config", path, "--steps", 2)
    model = model_file.load(MODEL)
    assert model.blueprint.config.time_embedding == "fourier"
    weight = model.ema["time_proj.weight"]
    assert weight.equal(model.raw["time_proj.weight"])
    assert model.network().time_proj.weight.equal(weight)
    train("--config", path, "--steps", 1, "--seed", 1, "-o", "other.safetensors")
    assert not model_file.load("other.safetensors").ema["time_proj.weight"].equal(weight)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["resnet", "convnext", "transformer"])
def test_gradient_checkpointing_does_not_change_the_model(
    train, recipe, transformer, tmp_path, block
):
    path = tmp_path / "dropout.toml"
    path.write_text(f'{recipe.read_text()}dropout = 0.3\nblock = "{block}"\n')
    line = ("--config", transformer if block == "transformer" else path, "--steps", 2)
    train(*line, "-o", "plain.safetensors")
    assert train(*line, "--gradient-checkpointing").code == 0
    assert MODEL.read_bytes() == Path("plain.safetensors").read_bytes()
    assert "gradient_checkpointing" not in RunDirectory(MODEL).config.read_text()


def test_a_trainer_checkpoints_where_it_is_asked(quick, trainers):
    quick("--steps", 1, "--gradient-checkpointing")
    quick("--steps", 1, "-o", "plain.safetensors")
    assert [own.net.run_block for own in trainers] == [run_checkpointed, run_directly]


def bytes_saved(net, run, besides=()):
    """Bytes that autograd saves of what `run` does, beside the weights and some tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *besides)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run()
    return total({t for t in saved if t.untyped_storage().data_ptr() not in own})


def total(tensors):
    """Bytes of tensors that are all alive, shared ones counted once."""
    storages = [t.untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


SMALL_VIT = {"width": 32, "depth": 3, "head_width": 16, "context": 2}


def drawn_up(network="unet", preset="tiny", **given):
    """The smallest preset for color images of 16x16, as a training has it."""
    config = configure({"data": "x", "preset": preset}, {network: given})
    return complete_config(config, Space(channels=3, size=(16, 16)), Conditions())[1]


def laid_out(blueprint, batch):
    """A network and its input, in channels-last order as training has them."""
    x = torch.zeros(batch, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    return blueprint.build().to(memory_format=torch.channels_last), x, torch.zeros(batch)


@pytest.mark.parametrize(
    ("batch", "network"),
    [(1, {}), (3, {}), (2, {"network": "vit", "preset": "vit-s", **SMALL_VIT})],
    ids=["1", "3", "vit"],
)
def test_the_estimate_counts_what_autograd_keeps(batch, network):
    blueprint = drawn_up(**network)
    net, x, t = laid_out(blueprint, batch)
    found = count_kept_bytes(blueprint, half=False, checkpointing=False).total_bytes(batch)
    assert found == bytes_saved(net, lambda: net(x, t))


@pytest.mark.parametrize("resblock_updown", [False, True])
def test_the_estimate_with_checkpointing_is_inputs_and_the_largest_block(resblock_updown):
    blueprint = drawn_up(resblock_updown=resblock_updown)
    net, x, t = laid_out(blueprint, 2)
    calls = []
    net.run_block = lambda block, *inputs: calls.append((block, inputs)) or block(*inputs)
    outside = bytes_saved(net, lambda: net.time_embedding(net.time_proj(t)))
    net(x, t)
    inputs = [[v for v in given if isinstance(v, torch.Tensor)] for _, given in calls]
    largest = max(
        bytes_saved(net, lambda b=block, g=given: b(*g), besides)
        for (block, given), besides in zip(calls, inputs, strict=True)
    )
    expected = total({v for own in inputs for v in own}) + total({x}) + outside + largest
    found = count_kept_bytes(blueprint, half=False, checkpointing=True).total_bytes(2)
    assert found == pytest.approx(expected, rel=0.01)
    assert found < count_kept_bytes(blueprint, half=False, checkpointing=False).total_bytes(2) / 2


def test_dry_run_prints_less_memory_with_checkpointing(train, step_takes):
    step_takes(1.0)
    plain = train("--dry-run", "--json").json
    checkpointed = train("--dry-run", "--json", "--gradient-checkpointing").json
    assert checkpointed["memory_bytes"] < plain["memory_bytes"]
    assert checkpointed["config"] == plain["config"]
    again = TrainConfig.from_dict(from_file(plain["config"]))
    assert again.width == 8
    assert to_file(again, control=False) == plain["config"]


def test_a_transformer_with_context_leaves_as_a_program_of_torch(diffuse, lab, images, transformer):
    line = ("train", images, "--config", transformer, "--classes", "--steps", 3)
    trained = lab.trained(*line)
    diffuse("convert", trained, "out.pt2", "-q").ok()
    model = model_file.load(trained)
    program, net = torch.export.load("out.pt2").module(), model.network()
    for n in (1, 3):
        fed = draw_inputs(model.blueprint, n, seed=n)
        with torch.no_grad():
            expected = net(**fed)
            found = program(fed.pop("x"), fed.pop("t"), **fed)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
