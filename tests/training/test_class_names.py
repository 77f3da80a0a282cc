"""Classes that are renamed or moved: between stop and resume, and under --init."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODEL, RUN
from PIL import Image

from diffuse_cli.core import Conditions
from diffuse_cli.models import model_file

EMBEDDING = "class_embedding.weight"
STILL = ("--steps", 1, "--lr", 0, "--weight-decay", 0)


@pytest.fixture
def stopped(lab, copy_run):
    """A run on classes, of equal images elsewhere, that stopped after 2 of 4 steps."""
    copy_run(*lab.quick, "--classes", "--steps", 4, "--stop-at", 2)


# -- resume ---------------------------------------------------------------------------------------


def test_a_class_that_was_renamed_is_refused_with_both_names(run, folder, stopped):
    """Images that are renamed within their class are the same."""
    before = MODEL.read_bytes()
    (folder / "dark").rename(folder / "z_dark")
    said = "have changed since this run started: missing dark; new z_dark"
    for flags in ((), ("--strict",)):
        run("--resume", *flags, "-q").fails(2, said)
        assert MODEL.read_bytes() == before
    (folder / "z_dark").rename(folder / "dark")
    for path in sorted((folder / "dark").iterdir()):
        path.rename(path.with_stem("a" + path.stem))
    assert "warning" not in run("--resume", "--strict").ok().err
    MODEL.unlink()
    (folder / "dark").rename(folder / "z_dark")
    assert run("--resume").code == 2  # a finished run is not written again with other names
    assert not MODEL.exists()


def test_new_classes_and_moved_images_are_refused_and_other_images_a_warning(run, folder, stopped):
    (folder / "grey").mkdir()
    shutil.copy(folder / "dark/000.png", folder / "grey")
    run("--resume", "-q").fails(2, "run started: new grey.")
    shutil.rmtree(folder / "grey")
    (folder / "dark/000.png").rename(folder / "light/000.png")
    (folder / "light/001.png").rename(folder / "dark/001.png")
    for flags in ((), ("--strict",)):
        said = "have moved to other class folders since this run started: dark, light"
        run("--resume", *flags, "-q").fails(2, said)
    (folder / "light/000.png").unlink()
    (folder / "dark/001.png").rename(folder / "light/001.png")
    assert run("--resume", "--strict").code == 3
    assert "warning: the images in" in run("--resume").ok().err
    assert run("--resume", "--strict").code == 0  # these are its images now


# -- init -----------------------------------------------------------------------------------------


def test_init_takes_the_classes_over_by_name(diffuse, folder, conditional):
    """Begun again without a checkpoint, a run has the same rows."""
    (folder / "dark").rename(folder / "z_dark")
    (folder / "grey").mkdir()
    for path in sorted((folder / "z_dark").iterdir())[:3]:
        path.rename(folder / "grey" / path.name)
    ran = diffuse("train", folder, "--init", conditional, *STILL).ok()
    told = "1 of 3 reused by name: light, 2 new, at first as without a class: grey, z_dark"
    assert told in ran.err
    before, after = (model_file.load(path).ema for path in (conditional, MODEL))
    _, light, none = before[EMBEDDING]
    assert after[EMBEDDING].equal(torch.stack([none, light, none, none]))
    assert all(after[name].equal(before[name]) for name in before if name != EMBEDDING)
    assert model_file.load(MODEL).classes == ("grey", "light", "z_dark")
    made = MODEL.read_bytes()
    shutil.rmtree(RUN / "checkpoints")
    MODEL.unlink()
    diffuse("train", "--resume").ok()
    assert MODEL.read_bytes() == made


def of_classes(model, *names):
    """The model with other names for its classes."""
    conditions = Conditions(classes=names)
    return replace(model, blueprint=replace(model.blueprint, conditions=conditions))


def test_init_of_classes_in_another_order_puts_them_in_order(diffuse, folder, conditional):
    model = model_file.load(conditional)
    model_file.save(Path("turned.safetensors"), of_classes(model, "light", "dark"))
    ran = diffuse("train", folder, "--init", "turned.safetensors", *STILL)
    assert "2 of 2 reused by name: dark, light\n" in ran.err
    turned = model_file.load(MODEL).ema[EMBEDDING]
    assert turned.equal(model.ema[EMBEDDING][[1, 0, 2]])


def test_classes_of_a_converted_model_without_names_keep_their_places(diffuse, folder, conditional):
    model = model_file.load(conditional)
    model_file.save(Path("numbers.safetensors"), replace(of_classes(model, "0", "1"), data={}))
    ran = diffuse("train", folder, "--init", "numbers.safetensors", *STILL)
    assert "have no names, so they follow the order of the folders: dark, light" in ran.err
    assert model_file.load(MODEL).ema[EMBEDDING].equal(model.ema[EMBEDDING])
    model_file.save(Path("digits.safetensors"), of_classes(model, "0", "1"))
    ran = diffuse("train", folder, "--init", "digits.safetensors", *STILL, "-o", "next.safetensors")
    assert "0 of 2 reused by name, 2 new, at first as without a class: dark" in ran.err


# -- what else init changes the meaning of --------------------------------------------------------


def test_another_target_than_that_of_init_is_a_warning(diffuse, folder, conditional):
    said = "warning: --target eps differs from"
    ran = diffuse("train", folder, "--init", conditional, "--target", "eps", *STILL).ok()
    assert said in ran.err
    assert "predicts v: its output layer is learned again" in ran.err
    ran = diffuse("train", folder, "--init", conditional, *STILL, "-o", "b.safetensors")
    assert said not in ran.err
    assert f"starting from {conditional}: all " in ran.err
    assert "by name" not in ran.err


def test_color_images_that_become_grey_are_counted(diffuse, run, folder, conditional):
    for path in sorted(folder.rglob("*.png"))[:7]:
        Image.open(path).convert("RGB").save(path)
    ran = diffuse("train", folder, "--init", conditional, *STILL).ok()
    assert "7 images in color, read as grey" in ran.err
    assert model_file.load(MODEL).blueprint.space.channels == 1
    assert "read as grey" not in run("--steps", 1, "-o", "color.safetensors").err
