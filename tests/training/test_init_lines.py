"""--init on the command line: what is said, what is refused, and exact resuming."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL, WHOLE, in_process
from PIL import Image

from diffuse_cli.models import model_file, tensor_file

STILL = ("--steps", 1, "--lr", 0, "--weight-decay", 0)


@pytest.fixture(scope="session")
def colors(tmp_path_factory):
    """40 color images of 16x16 in the class folders dark and red."""
    folder, draw = tmp_path_factory.mktemp("colors") / "colors", np.random.default_rng(4)
    for k in range(40):
        path = folder / ("dark", "red")[k % 2] / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mean = ((60, 70, 80), (220, 60, 50))[k % 2]
        pixels = draw.normal(mean, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def table(ran):
    """The rows of the table: part to parameters and text."""
    lines = ran.err.splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith("part  "))
    rows = (re.split(r"  +", line) for line in lines[begin + 1 :])
    found = {}
    for name, *cells in rows:
        if not cells:
            break
        found[name] = cells
        if name == "the rest":
            break
    return found


def numbers(rows):
    """The parameters in the table."""
    return {name: int(cells[0].replace(",", "")) for name, cells in rows.items() if len(cells) > 1}


@torch.no_grad()
def outputs(path, **cond):
    """Of a model, for a noisy grey sample in its channels."""
    model = model_file.load(path)
    space = model.blueprint.space
    grey = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = grey.expand(-1, space.channels, -1, -1)
    return model.network()(x, torch.tensor([100.0, 900.0]), **cond)


CHANGES = ("--channels", 3, "--size", 16, "--given", "low-res:2", "--classes")


def test_grey_becomes_color_larger_given_and_of_classes(diffuse, colors, model):
    ran = diffuse("train", colors, "--init", model, *CHANGES, *STILL)
    assert ran.code == 0, ran.err
    rows = table(ran)
    assert list(rows) == ["size", "channels", "given", "classes", "the rest"]
    assert rows["size"][-1].startswith("8x8 becomes 16x16")
    assert rows["given"][-1].startswith("new, at 0: low-res:2")
    assert rows["classes"][-1].startswith("new, at 0: dark, red")
    made = model_file.load(MODEL)
    assert sum(numbers(rows).values()) == sum(t.numel() for t in made.ema.values())
    assert made.blueprint.space.shape == (3, 16, 16)
    given = torch.randn(2, 4, 8, 8)
    drawn = outputs(MODEL, given=given, label=torch.tensor([0, 1]))
    torch.testing.assert_close(drawn, outputs(model).expand(-1, 3, -1, -1), rtol=1e-4, atol=1e-5)


def test_grey_becomes_color_larger_given_and_of_classes_and_resumes_exactly(diffuse, colors, model):
    shutil.copy(model, "old.safetensors")
    line = ("train", colors, "--init", "old.safetensors", *CHANGES, "--steps", 3)
    assert diffuse(*line, "-o", WHOLE).code == 0
    assert diffuse(*line, "--stop-at", 1).code == 0
    Path("old.safetensors").unlink()
    ran = diffuse("train", "--resume")
    assert ran.code == 0, ran.err
    assert "starting from" not in ran.err
    assert MODEL.read_bytes() == WHOLE.read_bytes()


def test_color_becomes_grey_smaller_and_is_told_nothing(diffuse, colors, images, recipe):
    line = ("train", colors, "--config", recipe, "--classes", "--given", "low-res:2")
    line += ("--variance", "learned", "--steps", 2)
    assert diffuse(*line, "-o", "old.safetensors").code == 0
    changes = ("--channels", 1, "--size", 8, "--given", "nothing", "--no-classes")
    line = ("train", images, "--init", "old.safetensors", *changes, "--variance", "small", *STILL)
    ran = diffuse(*line)
    assert ran.code == 0, ran.err
    rows = table(ran)
    assert list(rows) == ["size", "channels", "variance", "given", "classes", "the rest"]
    for name in ("variance", "given", "classes"):
        assert rows[name][-1].startswith("left out")
    made = model_file.load(MODEL)
    assert not made.blueprint.conditions
    kept = numbers({name: rows[name] for name in ("channels", "the rest")})
    assert sum(kept.values()) == sum(t.numel() for t in made.ema.values())
    old = outputs("old.safetensors")[:, :3].mean(1, keepdim=True)
    torch.testing.assert_close(outputs(MODEL), old, rtol=1e-4, atol=1e-5)
    assert diffuse(*line, "--auto-resume").code == 0


def test_pairs_that_are_left_out_are_a_warning(diffuse, images, recipe, tmp_path):
    shutil.copytree(images, tmp_path / "pairs")
    line = ("train", images, "--config", recipe, "--given", tmp_path / "pairs", "--steps", 1)
    assert diffuse(*line, "-o", "old.safetensors").code == 0
    ran = diffuse("train", images, "--init", "old.safetensors", *STILL)
    assert ran.code == 0, ran.err
    assert "warning: old.safetensors was trained with --given on pairs" in ran.err
    assert "left out: pairs" in table(ran)["given"][-1]
    again = ("--given", tmp_path / "pairs", *STILL, "-o", "next.safetensors")
    ran = diffuse("train", images, "--init", "old.safetensors", *again)
    assert "starting from old.safetensors: all " in ran.err


@pytest.mark.parametrize(("first", "then"), [(32, 48), (32, 64), (64, 32)])
def test_a_model_goes_on_at_another_size(diffuse, undrawn, tmp_path, first, then):
    """With the preset's own levels, attention and, from 64 pixels on, patches."""
    folder, draw = tmp_path / "some", np.random.default_rng(1)
    folder.mkdir()
    for k in range(6):
        pixels = draw.integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    quick = ("--steps", 1, "--batch-size", 2, "--precision", "fp32")
    line = ("train", folder, "--size", first, "--width", 8, *quick, "-o", "old.safetensors")
    assert diffuse(*line).code == 0
    line = ("train", folder, "--init", "old.safetensors", "--size", then, *STILL)
    ran = diffuse(*line)
    assert ran.code == 0, ran.err
    before, after = (model_file.load(path) for path in ("old.safetensors", MODEL))
    assert after.blueprint.space.size == (then, then)
    assert before.blueprint.config.patch == after.blueprint.config.patch
    assert all(after.ema[name].equal(tensor) for name, tensor in before.ema.items())
    assert list(table(ran)) == ["size", "the rest"]


def test_a_size_that_the_levels_do_not_halve_is_refused(diffuse, images, recipe, tmp_path):
    path = tmp_path / "levels.toml"
    path.write_text(recipe.read_text().replace("multipliers = [1]", "multipliers = [1, 1]"))
    assert (
        diffuse("train", images, "--config", path, "--steps", 1, "-o", "old.safetensors").code == 0
    )
    ran = diffuse("train", images, "--init", "old.safetensors", "--size", 9, *STILL, "-q")
    assert ran.code == 2
    assert "multiple of 2" in ran.line


def test_another_schedule_is_said(diffuse, images, model):
    ran = diffuse("train", images, "--init", model, "--schedule", "linear", *STILL)
    assert table(ran)["noise"][-1].startswith("another schedule")


def test_a_dry_run_says_it_and_writes_nothing(diffuse, colors, model, untimed):
    ran = diffuse("train", colors, "--init", model, "--channels", 3, "--dry-run")
    assert ran.code == 0, ran.err
    assert "grey becomes color" in table(ran)["channels"][-1]
    assert not MODEL.exists()


def test_color_images_of_a_grey_model_stay_grey_and_how_they_would_not(diffuse, colors, model):
    ran = diffuse("train", colors, "--init", model, *STILL)
    assert ran.code == 0
    assert "Use --channels 3 to train in color" in ran.err
    assert "starting from" in ran.err


@pytest.mark.parametrize("wrong", [b"", b"not a model", b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_no_model_is_refused(diffuse, images, wrong):
    Path("broken.safetensors").write_bytes(wrong)
    ran = diffuse("train", images, "--init", "broken.safetensors", *STILL, "-q")
    assert ran.code == 4
    assert "broken.safetensors" in ran.line


def test_weights_are_read_once_and_refused_if_they_are_not_numbers(
    diffuse, images, model, monkeypatch
):
    found, read = model_file.load(model), []
    real = tensor_file.read_tensors
    monkeypatch.setattr(tensor_file, "read_tensors", lambda *file: read.append(1) or real(*file))
    assert diffuse("train", images, "--init", model, *STILL, "-q").code == 0
    assert len(read) == 1
    name = next(iter(found.ema))
    wrong = {**found.ema, name: torch.full_like(found.ema[name], torch.nan)}
    model_file.save(Path("wrong.safetensors"), replace(found, ema=wrong))
    line = ("--init", "wrong.safetensors", *STILL, "-o", "next.safetensors", "-q")
    ran = diffuse("train", images, *line)
    assert (ran.code, f"its weights are NaN or infinite: {name}" in ran.line) == (4, True)
    assert not Path("next.run").exists()


def test_nothing_is_given_without_a_model_too(diffuse, images, recipe):
    line = ["train", images, "--config", recipe, "--given", "nothing", "--steps", 1, "-q"]
    assert in_process(line) == 0
    assert model_file.load(MODEL).blueprint.conditions.given is None
