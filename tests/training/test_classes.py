"""Training on classes, with a learned variance, and with timesteps that are drawn by their loss."""

from __future__ import annotations

import math
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL, PREVIEW_STEPS, RUN, WHOLE, logged, pixels
from lab import QUICK, write_images, write_rows
from PIL import Image
from safetensors.torch import load_file

from diffuse_cli.core import LOSSES
from diffuse_cli.core.losses import TIMESTEP_DRAWS, History, locate_timesteps, simple
from diffuse_cli.data import metadata_columns, read_images
from diffuse_cli.models import model_file
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import training_draws
from diffuse_cli.training.run_directory import RunDirectory

EMBEDDING = "class_embedding.weight"


def raw(path=MODEL):
    return model_file.load(path).raw


# -- captions -------------------------------------------------------------------------------------


def write_captioned(folder):
    """64 images in folders whose names are 60 different captions, with a table of these."""
    texts = [f"a photo of thing {max(k, 4)}" for k in range(64)]
    for k, text in enumerate(texts):
        (folder / text).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 3 * k, np.uint8)).save(folder / text / f"{k:02d}.png")
    rows = [(f"{text}/{k:02d}.png", text) for k, text in enumerate(texts)]
    write_rows(folder, [("file_name", "label"), *rows])
    return folder


@pytest.mark.parametrize("option", ["--classes", "--condition-on label"])
def test_captions_are_refused_as_labels(diffuse, option):
    data = write_captioned(Path("captioned"))
    line = ("train", data, "--config", QUICK, *option.split(), "--steps", 1, "-q")
    ran = diffuse(*line).fails(3, "cannot learn a label from one image")
    text = r"\d\d images have \d\d different labels, such as 'a photo of thing 10'"
    assert re.search(f"{option}: {text}", ran.line)
    assert not RUN.exists()


def test_a_run_that_began_with_captions_as_classes_resumes(diffuse, monkeypatch):
    data = write_captioned(Path("captioned"))
    with monkeypatch.context() as patch:
        patch.setattr(metadata_columns, "FEWEST_LABELED", 100)
        line = ("train", data, "--config", QUICK, "--classes", "--steps", 2, "--stop-at", 1, "-q")
        assert diffuse(*line).code == 0
    diffuse("train", data, "--resume", "-q").ok()


# -- labels ---------------------------------------------------------------------------------------


@pytest.fixture
def loose(tmp_path):
    """Images in two class folders, and five beside them that have no class."""
    folder = write_images(tmp_path / "loose", 30)
    for k in range(5):
        pixels = np.full((8, 8), 10 * k, np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def label_by_pixels(folder):
    images = finish(read_images(str(folder), workers=1))
    return {p.tobytes(): int(k) for p, k in zip(images.stored, images.labels, strict=True)}


def labels_shown(shown, known):
    """(the image's own label, the label that the network was shown), for each image."""
    pairs = []
    for x0, cond in shown:
        pixels = ((x0 + 1) * 127.5).round().to(torch.uint8).contiguous().numpy()
        for one, label in zip(pixels, cond["label"].tolist(), strict=True):
            pairs.append((known[one.tobytes()], label))
    return pairs


def test_every_image_is_shown_with_its_own_class(diffuse, loose, shown):
    line = ("train", loose, "--config", QUICK, "--classes", "--label-dropout", 0, "--steps", 9)
    assert diffuse(*line).code == 0
    pairs = labels_shown(shown, label_by_pixels(loose))
    assert {*pairs} == {(0, 0), (1, 1), (-1, 2)}
    assert len(pairs) == 72


@pytest.mark.parametrize("flags", ["", "--flip --accumulation 3"])
def test_classes_are_left_out_by_the_draw_of_the_position(quick, shown, images, flags):
    quick("--classes", "--label-dropout", 0.5, "--steps", 25, *flags.split())
    found = torch.cat([cond["label"] for _, cond in shown])
    drops = [
        training_draws(0, step, range(8), shape=(1, 8, 8), device=torch.device("cpu")).drop
        for step in range(25)
    ]
    assert torch.equal(found == 2, torch.cat(drops) < 0.5)
    assert 70 < int((found == 2).sum()) < 130
    if not flags:
        kept = {(own, label) for own, label in labels_shown(shown, label_by_pixels(images))}
        assert kept == {(0, 0), (1, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize(("share", "moved"), [(0, [True, True, False]), (1, [False, False, True])])
def test_label_dropout_decides_which_rows_of_the_embedding_learn(quick, share, moved):
    line = ("--classes", "--label-dropout", share, "--weight-decay", 0)
    quick(*line, "--steps", 1, "--lr", 0, "-o", "start.safetensors")
    quick(*line, "--steps", 6)
    before, after = raw("start.safetensors")[EMBEDDING], raw()[EMBEDDING]
    assert before.shape[0] == 3
    assert (before != after).any(1).tolist() == moved


def test_classes_are_no_more_than_a_condition(quick, shown):
    """The images and flips of a run are the same with and without classes."""
    quick("--steps", 4, "--flip", "-o", "plain.safetensors")
    quick("--steps", 4, "--flip", "--classes")
    for (x0, cond), (other, told) in zip(shown[:4], shown[4:], strict=True):
        assert torch.equal(x0, other)
        assert (cond, [*told]) == ({}, ["label"])
    assert EMBEDDING not in raw("plain.safetensors")
    model = model_file.load(MODEL)
    assert model.classes == ("dark", "light")
    assert model.training["classes"] is True
    assert tomllib.loads((RUN / "config.toml").read_text())["classes"] is True


def test_classes_that_are_not_used_and_copies_are_named(diffuse, folder, step_takes):
    step_takes(1.0)
    line = ("train", folder, "--config", QUICK, "--steps", 2, "--dry-run")
    unused, copies = "2 classes: use --classes to choose one when you sample", "copies of others"
    plain, told = diffuse(*line).err, diffuse(*line, "--classes").err
    assert (unused in plain, unused in told, copies in plain) == (True, False, False)
    for k, path in enumerate(sorted((folder / "dark").iterdir())[:3]):
        shutil.copy(path, folder / "light" / f"copy {k}.png")
    says = f"3 of 63 images are copies of others. List them with: diffuse info {folder}"
    assert says in diffuse(*line).err


def test_the_held_out_loss_is_measured_with_the_labels(train, trainers):
    """An independent sum over the held-out images, each with its class and the same draws."""
    train("--classes", "--label-dropout", 0, "--steps", 15, "--lr", 0.01)
    [trainer], found = trainers, logged("held_out_loss")[-1]
    data, held = trainer.plan.data, trainer.plan.data.held_out
    draws = training_draws(
        0, 0, range(len(held)), shape=(1, 8, 8), device=trainer.device, purpose="held-out"
    )
    t = (draws.u.double() * 100).long()
    x0 = torch.from_numpy(data.images.stored[held]).float() / 127.5 - 1
    labels = torch.from_numpy(data.images.labels[held])
    denoiser = trainer.plan.blueprint.denoiser(trainer.ema.net)
    snr = denoiser.process.alpha_bars / (1 - denoiser.process.alpha_bars)
    weight = (snr.sqrt() / (1 + snr / math.e**2) / 2)[t].float()
    with torch.no_grad():
        right, wrong, none = (
            float(simple(denoiser, x0, t, draws.noise, weight, label=label).mean())
            for label in (labels, 1 - labels, None)
        )
    assert found == pytest.approx(right, rel=1e-5)
    assert abs(right - wrong) > 1e-3 * right
    assert abs(right - none) > 1e-3 * right


def test_a_preview_shows_the_classes_in_turn(diffuse, conditional):
    line = ("-n", 16, "--steps", PREVIEW_STEPS, "--precision", "fp32", "--no-grid")
    assert diffuse("sample", conditional, *line).code == 0
    assert diffuse("sample", conditional, *line, "--guidance", 0, "-o", "free").code == 0
    run = conditional.with_suffix(".run")
    preview = np.asarray(Image.open(run / "previews/step-00000060.png"), int)
    for k in range(16):
        y, x = 66 * (k // 4), 66 * (k % 4)
        shown = preview[y : y + 64 : 8, x : x + 64 : 8]
        assert np.abs(shown - pixels("samples", k)).max() <= 2
        assert np.abs(shown - pixels("free", k)).max() > 10


# -- going on, and starting from ------------------------------------------------------------------


def test_init_of_a_conditional_model_keeps_its_classes_and_variance(diffuse, images, conditional):
    still = ("--steps", 1, "--lr", 0, "--weight-decay", 0)
    diffuse("train", images, "--init", conditional, *still).ok()
    before, after = load_file(conditional), load_file(MODEL)
    assert before[EMBEDDING].shape[0] == 3
    assert all(after[name].equal(before[name]) for name in before if not name.startswith("raw."))
    config = tomllib.loads((RUN / "config.toml").read_text())
    wanted = {"classes": True, "label_dropout": 0.3, "variance": "learned", "loss": "hybrid"}
    assert config.items() >= wanted.items()


# -- the learned variance -------------------------------------------------------------------------


def test_a_learned_variance_learns_from_hybrid_and_from_vlb(train):
    for loss in ("hybrid", "vlb"):
        ran = train("--variance", "learned", "--loss", loss, "--steps", 3, "--overwrite").ok()
        assert "does not train" not in ran.err
        mean, spread = raw()["conv_out.weight"].chunk(2)
        assert mean.shape == spread.shape == (1, 8, 3, 3)
        assert min(float(half.abs().max()) for half in (mean, spread)) > 1e-3


def test_simple_trains_no_variance_and_says_so(train):
    ran = train("--variance", "learned", "--loss", "simple", "--steps", 3)
    assert "warning: --loss simple does not train the learned variance" in ran.err
    assert "--loss hybrid" in ran.err
    mean, spread = raw()["conv_out.weight"].chunk(2)
    assert float(mean.abs().max()) > 1e-3
    assert float(spread.abs().max()) == 0
    assert float(raw()["conv_out.bias"][1].abs()) == 0
    assert "does not train" not in train("--loss", "simple", "--steps", 1, "-o", WHOLE).err


# -- timesteps by their loss ----------------------------------------------------------------------

ADAPTED = ("--num-timesteps", 4, "--timestep-draw", "importance")


@pytest.mark.parametrize("accumulation", [1, 3])
def test_timesteps_follow_the_losses_and_losses_are_divided_by_their_chance(
    quick, monkeypatch, trainers, accumulation
):
    """A replay from the draws alone: timesteps, the loss that is logged, the history, and the
    gradient, which is that of the mean over all timesteps. The loss is (t + 1)^2, and its gradient
    is 1 at the mean of what the network says."""
    steps, pulls = 20, []

    def loss(denoiser, x0, t, noise, weight=None, **cond):
        y = denoiser(x0, t, **cond).raw.flatten(1).mean(1)
        if y.requires_grad:
            y.register_hook(lambda g: pulls.append((t, g)))
        return (t + 1) ** 2 + (y - y.detach())

    monkeypatch.setitem(LOSSES, "simple", loss)
    quick(*ADAPTED, "--steps", steps, "--log-every", 1, "--accumulation", accumulation)
    draw, history = TIMESTEP_DRAWS["importance"], History(4, 10)
    losses, adapted = [], 0
    for step in range(steps):
        chances = draw.probabilities(history, None)
        u = training_draws(0, step, range(8), shape=(1, 8, 8), device=torch.device("cpu")).u
        t = locate_timesteps(chances.cumsum(0), u)
        parts = pulls[step * accumulation : (step + 1) * accumulation]
        mine, gradients = map(torch.cat, zip(*parts, strict=True))
        assert torch.equal(mine, t)
        assert torch.allclose(gradients.double(), 1 / (8 * 4 * chances[t]), rtol=1e-4)
        plain = ((t + 1) ** 2).double()
        losses.append(float((plain / (4 * chances[t])).mean()))
        history.add(t.tolist(), plain.tolist())
        adapted += float(chances.max()) > 0.3
    assert adapted > 5
    assert logged("loss") == pytest.approx(losses, rel=1e-5)
    assert torch.equal(trainers[0].history.losses, history.losses)
    assert torch.equal(trainers[0].history.counts, history.counts)
    late = torch.cat([t for t, _ in pulls[-5 * accumulation :]])
    assert float((late == 3).double().mean()) > 0.35


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_bad_step_does_not_enter_the_history(quick, spoil, accumulation):
    spoil(lambda call: call // accumulation == 2)
    line = ("--steps", 12, "--log-every", 1, "--accumulation", accumulation)
    assert quick(*ADAPTED, *line).code == 0
    history = RunDirectory(MODEL).load()[0].history
    assert int(history["counts"].sum()) == 11 * 8
    assert history["losses"].isfinite().all()
    assert [loss is None for loss in logged("loss")] == [step == 2 for step in range(12)]
