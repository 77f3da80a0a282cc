"""Training with augmentation: the network is told, and its samples stay unchanged."""

from __future__ import annotations

import pytest
import torch
from conftest import MODEL, RUN, WHOLE, mostly_slow
from lab import QUICK
from safetensors.torch import load_file

from diffuse_cli.core.augmentations import count_parameters
from diffuse_cli.media import MEDIA
from diffuse_cli.models import model_file
from diffuse_cli.system.rng import augmentation_draws
from diffuse_cli.training import decisions

ALL = MEDIA["image"].augmentations


def augmentations(path=MODEL):
    return model_file.load(path).training["augment"]


@pytest.mark.parametrize(
    "recipe", mostly_slow([(("--config", QUICK),), (("--preset", "slim", "--width", 8),)], always=1)
)
def test_the_model_file_is_that_of_a_model_without(diffuse, images, recipe):
    """It has no tensor for what only training tells, and the training learns from it."""
    line = ("train", images, "--steps", 6, "--keep-raw", *recipe)
    assert diffuse(*line, "--augment", ",".join(ALL)).code == 0
    assert diffuse(*line, "--augment", "none", "-o", "plain.safetensors").code == 0
    found, plain = load_file(MODEL), load_file("plain.safetensors")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in plain.items()}
    assert any(name.startswith("raw") for name in found)
    assert augmentations() == list(ALL)
    state = sorted(RUN.rglob("optimizer.safetensors"))[-1]
    gradient = load_file(state)["augment_embedding.weight.exp_avg"]
    assert gradient.shape[1] == count_parameters(ALL)
    assert gradient.abs().max() > 0


def test_samples_and_parameters_differ_where_drawn(quick, shown):
    assert quick("--steps", 12, "--augment", "flip,color").code == 0
    assert len(shown) == 12
    parameters = torch.cat([cond["augment"] for _, cond in shown])
    assert 0.3 < float(parameters[:, 0].mean()) < 0.7
    assert 0.03 < float((parameters[:, 1] != 0).float().mean()) < 0.4


def test_pairs_move_with_their_image_and_keep_their_values(quick, negatives, shown):
    """The negative of a moved image is the moved negative."""
    line = ("--steps", 8, "--given", negatives, "--given-dropout", 0)
    assert quick(*line, "--augment", "flip,shift,rotate,zoom").code == 0
    moved = 0
    for x0, cond in shown:
        assert torch.allclose(cond["given"][:, :-1], -x0, atol=1e-4)
        moved += int((cond["augment"] != 0).any(1).sum())
    assert moved > 8


def test_a_stream_and_parts_of_a_batch_change_nothing(quick):
    line = ("--steps", 4, "--augment", ",".join(ALL))
    assert quick(*line, "-o", WHOLE).code == 0
    assert quick(*line, "--cache", 0).code == 0
    assert MODEL.read_bytes() == WHOLE.read_bytes()
    assert quick(*line, "--accumulation", 2, "-o", "parts.safetensors").code == 0
    own, other = load_file(WHOLE), load_file("parts.safetensors")
    assert all(torch.allclose(own[name], other[name], atol=1e-5) for name in own)


def test_draws_belong_to_positions():
    whole = augmentation_draws(3, 5, range(32), 7)
    assert torch.equal(whole[10:20], augmentation_draws(3, 5, range(10, 20), 7))
    assert not torch.equal(whole, augmentation_draws(3, 6, range(32), 7))


# -- which ----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Let a short run see its images often enough."""
    monkeypatch.setattr(decisions, "PASSES", 0.1)


def test_few_images_that_are_seen_often_are_augmented_and_it_is_said(quick, few):
    ran = quick("--steps", 40, "--stop-at", 1, "--augment", "auto").ok()
    said = "each of 54 images is seen 6 times, so they are augmented by flip, zoom, rotate, shift"
    assert said in ran.err
    assert augmentations() == list(ALL)
    assert quick("--steps", 40, "--stop-at", 2, "--augment", "auto", "--resume").code == 0
    line = ("--steps", 2, "--augment")
    assert quick(*line, "flip", "-o", "old.safetensors").code == 0
    assert quick(*line, "auto", "--init", "old.safetensors", "--overwrite").code == 0
    assert augmentations() == list(ALL)


@pytest.mark.parametrize(
    ("steps", "most", "augmented"), [(2699, None, False), (2700, None, True), (2700, 53, False)]
)
def test_it_is_the_number_of_passes_that_decides(quick, monkeypatch, steps, most, augmented):
    """54 images in batches of 8: 2,700 steps are 400 passes. Many images are not augmented."""
    if most:
        monkeypatch.setattr(decisions, "AUGMENTED", most)
    ran = quick("--steps", steps, "--stop-at", 1, "--augment", "auto").ok()
    assert ("so they are augmented" in ran.err) == augmented


@pytest.mark.parametrize("preset", ["ddpm-cifar10", "iddpm-imagenet64"])
def test_models_of_papers_have_none(diffuse, images, step_takes, preset):
    step_takes(1.0)
    ran = diffuse("train", images, "--preset", preset, "--dry-run", "--json").ok()
    assert "augmented" not in ran.err


def test_arrays_are_only_moved(diffuse, lab, few):
    ran = diffuse("train", lab["fields"], "--preset", "slim", "--width", 8, "--steps", 2).ok()
    assert "augmented by flip, shift" in ran.err


# -- number of steps ------------------------------------------------------------------------------


def test_a_run_sees_each_image_1000_times_in_1000_to_5000_steps():
    for count, batch, steps in [
        (2, 64, 1000), (64, 64, 1000), (65, 64, 1015), (200, 64, 3125), (321, 64, 5000),
        (10**6, 64, 5000), (200, 128, 1562), (200, 32, 5000),
    ]:  # fmt: skip
        assert decisions.plan_steps(count, batch) == steps


@pytest.mark.parametrize(
    ("options", "steps"),
    [((), 7), (("--steps", 9), 9), (("--init", MODEL, "-o", "b.safetensors"), 7)],
)
def test_few_images_take_fewer_steps_by_default_and_it_is_said(quick, monkeypatch, options, steps):
    monkeypatch.setattr(decisions, "plan_steps", lambda count, batch_size: count // batch_size + 1)
    assert quick("--steps", 2).code == 0
    ran = quick("--overwrite", *options).ok()
    assert model_file.load(ran.out.strip()).training["steps"] == steps
    assert ("7 steps for 54 images" in ran.err) == (steps == 7)


def test_minutes_leave_no_word_of_fewer_steps(quick, step_takes):
    step_takes(1.0)
    assert "may become copies" not in quick("--minutes", 0.05, "--dry-run").ok().err
