"""--wiener: which runs correct the Wiener filter of their data, and what keeps it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from diffuse_cli.commands.convert.network_graph import CompleteNetwork, draw_inputs
from diffuse_cli.core import Conditions, Space
from diffuse_cli.models import model_file
from diffuse_cli.training import plan
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config

MODEL, OTHER = Path("model.safetensors"), Path("other.safetensors")
PATCHES = ("--steps", 4, "--batch-size", 4, "-q")


@pytest.fixture
def patched(diffuse, images, tmp_path):
    """Train a network that reads patches."""
    config = tmp_path / "patches.toml"
    config.write_text("[unet]\npatch = 2\nwidth = 8\nmultipliers = [1]\nblocks = 1\ngroups = 4\n")
    return lambda *more: diffuse("train", images, "--config", config, *PATCHES, *more)


@pytest.mark.parametrize(
    ("options", "size", "found"),
    [
        ({"preset": "tiny"}, 32, False),
        ({"preset": "tiny"}, 64, True),
        ({"preset": "tiny", "wiener": False}, 64, False),
        ({"preset": "tiny", "wiener": True}, 32, True),
        ({"preset": "small"}, 64, False),
        ({"preset": "base"}, 256, True),
        ({"preset": "vit-s"}, 64, False),
        ({"preset": "ddpm-cifar10"}, 32, False),
    ],
)
def test_networks_that_read_patches_correct_a_filter(options, size, found):
    space = Space(channels=3, size=(size, size))
    config, blueprint = complete_config(configure({"data": "", **options}), space, Conditions())
    assert (config.wiener, blueprint.wiener) == (found, found)
    if config.network == "unet":
        inputs = (2 if found else 1) * space.channels * blueprint.config.patch**2
        assert blueprint.shapes["conv_in.weight"][1] == inputs


def test_a_resumed_run_keeps_the_filter_of_its_data(patched, images, diffuse):
    assert patched().code == 0
    whole = model_file.load(MODEL)
    assert whole.blueprint.wiener
    assert whole.training["wiener"] is True
    assert whole.blueprint.gaussian.bands is not None
    before = MODEL.read_bytes()
    patched("--overwrite", "--stop-at", 2)
    assert patched("--resume").code == 0
    assert MODEL.read_bytes() == before
    assert patched("--no-wiener", "-o", OTHER).code == 0
    plain = model_file.load(OTHER)
    assert (plain.blueprint.wiener, plain.blueprint.gaussian.bands) == (False, None)
    assert patched("--resume", "--no-wiener").code == 2


def test_a_distilled_model_has_the_filter_of_its_teacher(patched, diffuse, images, tmp_path):
    patched()
    few = tmp_path / "few"
    shutil.copytree(images / "dark", few)
    diffuse("distill", MODEL, few, "--steps", 2, "--batch-size", 2, "-o", OTHER, "-q").ok()
    own, other = (model_file.load(path).blueprint for path in (MODEL, OTHER))
    assert other.gaussian == own.gaussian
    assert diffuse("sample", OTHER, "-n", 1, "-q").code == 0


def test_an_exported_network_predicts_the_target(patched):
    """A larger sample is predicted in windows."""
    patched()
    found = model_file.load(MODEL)
    net, own = found.network(), found.blueprint
    whole, fed, denoiser = CompleteNetwork(net, own), draw_inputs(own, 3), own.denoiser(net)
    times = torch.tensor([0, 400, 999])
    shown = own.process.time_input(times, like=fed["x"])
    x = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = denoiser(fed["x"], times).raw
        assert torch.allclose(whole(fed["x"], shown), expected, rtol=1e-3, atol=1e-3)
        wide, left = denoiser(x, 50).x0, denoiser(x[..., :8], 50).x0
    assert wide.shape == x.shape
    assert torch.allclose(wide[..., :3], left[..., :3], atol=0.05)


def test_grey_and_color_networks_read_their_own_estimate(patched, diffuse, images):
    """A grey model becomes one for color, with input weights for both."""
    patched()
    line = ("train", images, "--init", MODEL, "--steps", 1, "-q", "-o", OTHER)
    diffuse(*line, "--no-wiener").fails(2, "was trained with --wiener")
    still = ("--lr", 0, "--weight-decay", 0, "--precision", "fp32")
    diffuse(*line, "--channels", 3, *still).ok()
    own, other = map(model_file.load, (MODEL, OTHER))
    assert other.blueprint.wiener
    grey, color = (found.ema["conv_in.weight"] for found in (own, other))
    grey, color = grey.unflatten(1, (2, 1, 4)), color.unflatten(1, (2, 3, 4))
    assert torch.allclose(color.sum(2), grey.sum(2), atol=1e-5)  # as before for grey images
    assert not torch.allclose(color[:, 0, 0], color[:, 0, 1], atol=1e-5)  # differences are new


def test_diffusers_has_no_filter(diffuse, images):
    line = ("train", images, "--preset", "tiny", "--wiener", "--width", 8, *PATCHES)
    assert diffuse(*line).code == 0
    said = "diffusers cannot say wiener = true. Train with --no-wiener"
    diffuse("convert", MODEL, "--to", "diffusers", "-o", "folder", "-q").fails(4, said)


@pytest.mark.parametrize(
    ("space", "found"),
    [
        (Space(channels=32, size=(128, 128)), True),
        (Space(channels=40, size=(128, 128)), False),
        (Space(channels=1, size=(2048,), medium="audio", levels=2**16, rate=16000), True),
        (Space(channels=1, size=(4096,), medium="audio", levels=2**16, rate=16000), False),
    ],
    ids=str,
)
def test_long_samples_and_many_channels_have_no_filter(space, found):
    """The network would read the estimates of twice as many channels as it may, and the transform
    of a second of sound would take gigabytes."""
    preset = "large" if space.medium == "image" else "tiny"
    config, _ = complete_config(configure({"data": "", "preset": preset}), space, Conditions())
    assert config.wiener is found


@pytest.mark.parametrize("options", [(), ("--flip",)])
def test_the_mean_of_mirrored_images_is_symmetric(patched, options):
    assert patched(*options).code == 0
    mean = torch.tensor(model_file.load(MODEL).blueprint.gaussian.mean)
    odd = mean[..., 1::2].abs().max()  # cosines that change sign in the mirror
    assert (odd < 1e-5) == bool(options)


def test_the_gaussian_of_the_data_does_not_depend_on_how_many_are_read_at_a_time(
    patched, monkeypatch
):
    models = []
    for most in (plan.AT_ONCE, 5 * 3 * 8 * 8):
        monkeypatch.setattr(plan, "AT_ONCE", most)
        assert patched("--overwrite").code == 0
        models.append(model_file.load(MODEL).blueprint.gaussian)
    for name in ("mean", "variance"):
        one, other = (torch.tensor(getattr(gaussian, name)) for gaussian in models)
        torch.testing.assert_close(one, other)
