"""Training with augmentation: the network is told, and its samples stay unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MODEL, RUN, WHOLE
from lab import QUICK
from safetensors.torch import load_file

from diffuse_cli.core.augmentations import count_parameters
from diffuse_cli.core.losses import LOSSES, simple
from diffuse_cli.media import MEDIA
from diffuse_cli.models import model_file
from diffuse_cli.system.rng import augmentation_draws
from diffuse_cli.training import decisions

NEXT = ("--steps", 2, "-o", "next.safetensors")
ALL = MEDIA["image"].augmentations


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """What each loss was of: samples and conditions."""
    found: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def look(denoiser: Any, x0: torch.Tensor, t: Any, noise: Any, weight: Any, **cond: Any) -> Any:
        found.append((x0, cond))
        return simple(denoiser, x0, t, noise, weight, **cond)

    monkeypatch.setitem(LOSSES, "simple", look)
    return found


def config() -> dict[str, Any]:
    training: dict[str, Any] = dict(model_file.load(MODEL).training)
    return training


@pytest.mark.parametrize("recipe", [("--config", QUICK), ("--preset", "slim", "--width", 8)])
def test_the_model_file_is_that_of_a_model_without(diffuse, images, recipe):
    """It has no tensor for what only training tells, and the training learns from it."""
    line = ("train", images, "--steps", 6, "--keep-raw", *recipe)
    assert diffuse(*line, "--augment", ",".join(ALL)).code == 0
    assert diffuse(*line, "--augment", "none", "-o", "plain.safetensors").code == 0
    found, plain = load_file(MODEL), load_file("plain.safetensors")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in plain.items()}
    assert any(name.startswith("raw") for name in found)
    assert config()["augment"] == list(ALL)
    state = sorted(RUN.rglob("optimizer.safetensors"))[-1]
    gradient = load_file(state)["augment_embedding.weight.exp_avg"]
    assert gradient.shape[1] == count_parameters(ALL)
    assert gradient.abs().max() > 0


def test_samples_and_parameters_differ_where_drawn(quick, told):
    assert quick("--steps", 12, "--augment", "flip,color").code == 0
    during = [(x0, cond["augment"]) for x0, cond in told if "augment" in cond]
    assert len(during) == 12
    parameters = torch.cat([own for _, own in during])
    assert 0.3 < float(parameters[:, 0].mean()) < 0.7
    assert 0.03 < float((parameters[:, 1] != 0).float().mean()) < 0.4
    assert len(told) > 12, "held-out losses are of unchanged samples"


def test_pairs_move_with_their_image_and_keep_their_values(quick, negatives, told):
    """The negative of a moved image is the moved negative."""
    line = ("--steps", 8, "--given", negatives, "--given-dropout", 0)
    assert quick(*line, "--augment", "flip,shift,rotate,zoom").code == 0
    moved = 0
    for x0, cond in told:
        values = cond["given"][:, :-1]
        assert torch.allclose(values, -x0, atol=1e-4)
        moved += int((cond["augment"] != 0).any(1).sum()) if "augment" in cond else 0
    assert moved > 8


def test_a_degradation_is_of_the_changed_image(quick, told):
    line = ("--steps", 8, "--given", "mask:half", "--given-dropout", 0)
    assert quick(*line, "--augment", ",".join(ALL)).code == 0
    for x0, cond in told:
        values, known = cond["given"][:, :-1], cond["given"][:, -1:]
        assert torch.equal(values, x0 * known)


@pytest.mark.parametrize("options", ["", "--flip --accumulation 2 --classes", "--ema-lengths 4"])
def test_stopped_and_resumed_equals_one_go(quick, options):
    line = ("--steps", 8, "--augment", ",".join(ALL), *options.split())
    assert quick(*line, "-o", WHOLE).code == 0
    assert quick(*line, "--stop-at", 3).code == 0
    half = MODEL.read_bytes()
    assert quick(*line, "--resume").code == 0
    assert MODEL.read_bytes() == WHOLE.read_bytes() != half


def test_a_stream_and_parts_of_a_batch_change_nothing(quick):
    line = ("--steps", 4, "--augment", ",".join(ALL))
    assert quick(*line, "-o", WHOLE).code == 0
    assert quick(*line, "--cache", 0).code == 0
    assert MODEL.read_bytes() == WHOLE.read_bytes()
    assert quick(*line, "--accumulation", 2, "-o", "parts.safetensors").code == 0
    own, other = load_file(WHOLE), load_file("parts.safetensors")
    assert all(torch.allclose(own[name], other[name], atol=1e-5) for name in own)


def test_two_processes_draw_what_one_does(pair, images, quick):
    line = ("--steps", 4, "--augment", ",".join(ALL))
    ran = pair("train", images, "--config", QUICK, *line, "-o", WHOLE)
    assert ran.code == 0, ran.err
    assert quick(*line).code == 0
    own, other = load_file(WHOLE), load_file(MODEL)
    assert all(torch.allclose(own[name], other[name], atol=1e-5) for name in own)


def test_draws_belong_to_positions():
    whole = augmentation_draws(3, 5, range(32), 7)
    assert torch.equal(whole[10:20], augmentation_draws(3, 5, range(10, 20), 7))
    assert not torch.equal(whole, augmentation_draws(3, 6, range(32), 7))


# -- which ----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a short run see its images often enough."""
    monkeypatch.setattr(decisions, "PASSES", 0.1)


def test_few_images_that_are_seen_often_are_augmented_and_it_is_said(quick, few):
    ran = quick("--steps", 40, "--stop-at", 1, "--augment", "auto")
    assert ran.code == 0
    said = "each of 54 images is seen 6 times, so they are augmented by flip, zoom, rotate, shift"
    assert said in ran.err
    assert config()["augment"] == list(ALL)
    assert quick("--steps", 40, "--stop-at", 2, "--augment", "auto", "--resume").code == 0


@pytest.mark.parametrize(("steps", "augmented"), [(2699, False), (2700, True)])
def test_it_is_the_number_of_passes_that_decides(quick, steps, augmented):
    """54 images in batches of 8: 2,700 steps are 400 passes."""
    ran = quick("--steps", steps, "--stop-at", 1, "--augment", "auto")
    assert ran.code == 0
    assert ("so they are augmented" in ran.err) == augmented


def test_many_images_are_not_augmented(quick, few, monkeypatch):
    monkeypatch.setattr(decisions, "AUGMENTED", 53)
    assert quick("--steps", 2, "--augment", "auto").code == 0
    assert config()["augment"] == []


def test_another_number_of_images_starts_from_its_own_default(quick, few):
    assert quick("--steps", 2, "--augment", "flip").code == 0
    assert (
        quick("--steps", 2, "--init", MODEL, "--augment", "auto", "-o", "next.safetensors").code
        == 0
    )
    assert model_file.load("next.safetensors").training["augment"] == list(ALL)


@pytest.mark.parametrize("preset", ["ddpm-cifar10", "iddpm-imagenet64"])
def test_models_of_papers_have_none(diffuse, images, preset):
    ran = diffuse("train", images, "--preset", preset, "--dry-run", "--json")
    assert ran.code == 0
    assert "augmented" not in ran.err


def test_arrays_are_only_moved(diffuse, few):
    Path("fields").mkdir()
    for k, field in enumerate(np.random.default_rng(0).normal(size=(40, 8, 8))):
        np.save(f"fields/{k}.npy", field.astype(np.float32))
    line = ("train", "fields", "--preset", "slim", "--width", 8, "--steps", 2)
    ran = diffuse(*line)
    assert ran.code == 0
    assert "augmented by flip, shift" in ran.err
    ran = diffuse(*line, "--augment", "rotate", "--overwrite")
    assert ran.code == 2
    assert "--augment rotate is not for arrays" in ran.err
    assert "flip, shift" in ran.err


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("flop", "--augment: there is no 'flop'"),
        ("flip,none", "--augment 'flip,none': none, auto, or names such as flip,shift"),
        ("", "--augment '': none, auto, or names such as flip,shift"),
        ("gain", "--augment gain is not for images"),
        (",", "--augment"),
    ],
)
def test_bad_values_have_their_line(quick, typed, text):
    ran = quick("--steps", 2, "--augment", typed)
    assert ran.code == 2
    assert text in ran.err
    assert not MODEL.exists()


def test_a_resumed_run_keeps_its_augmentations(quick):
    assert quick("--steps", 4, "--augment", "flip", "--stop-at", 2).code == 0
    ran = quick("--steps", 4, "--resume", "--augment", "color")
    assert ran.code == 2
    assert "--augment color differs from the run's flip" in ran.err


# -- number of steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch", "steps"),
    [
        (2, 64, 1000), (64, 64, 1000), (65, 64, 1015), (200, 64, 3125), (321, 64, 5000),
        (10**6, 64, 5000), (200, 128, 1562), (200, 32, 5000),
    ],
)  # fmt: skip
def test_a_run_sees_each_image_1000_times_in_1000_to_5000_steps(count, batch, steps):
    assert decisions.plan_steps(count, batch) == steps


@pytest.mark.parametrize(
    ("options", "steps"),
    [((), 7), (("--steps", 9), 9), (("--init", MODEL, "-o", "b.safetensors"), 7)],
)
def test_few_images_take_fewer_steps_by_default_and_it_is_said(quick, monkeypatch, options, steps):
    monkeypatch.setattr(decisions, "plan_steps", lambda count, batch_size: count // batch_size + 1)
    assert quick("--steps", 2).code == 0
    ran = quick("--overwrite", *options)
    assert ran.code == 0, ran.err
    assert model_file.load(ran.out.strip()).training["steps"] == steps
    assert ("7 steps for 54 images" in ran.err) == (steps == 7)


def test_minutes_leave_no_word_of_fewer_steps(quick):
    ran = quick("--minutes", 0.05)
    assert ran.code == 0, ran.err
    assert "may become copies" not in ran.err
