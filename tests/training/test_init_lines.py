"""--init on the command line: what is said, what is refused, and exact resuming."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MODEL, WHOLE, mostly_slow
from lab import write_images
from PIL import Image

from diffuse_cli.models import model_file

STILL = ("--steps", 1, "--lr", 0, "--weight-decay", 0)


@pytest.fixture(scope="session")
def colors(tmp_path_factory):
    """40 color images of 16x16 in the class folders dark and red."""
    folder = tmp_path_factory.mktemp("colors") / "colors"
    for path in write_images(folder, 40, side=16).rglob("*.png"):
        parts = [Image.open(path).point(lambda v, k=k: v * k // 3) for k in (3, 2, 1)]
        Image.merge("RGB", parts).save(path)
    return (folder / "light").rename(folder / "red").parent


def table(ran):
    """The rows of the table: part to parameters and text."""
    lines = ran.err[ran.err.index("\npart  ") + 1 :].splitlines()[1:]
    rows = [re.split(r"  +", line) for line in lines]
    last = [row[0] for row in rows].index("the rest")
    return {name: cells for name, *cells in rows[: last + 1]}


def numbers(rows):
    """The parameters in the table."""
    return {name: int(cells[0].replace(",", "")) for name, cells in rows.items() if len(cells) > 1}


@torch.no_grad()
def outputs(path, **cond):
    """Of a model, for a noisy grey sample in its channels."""
    model = model_file.load(path)
    grey = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = grey.expand(-1, model.blueprint.space.channels, -1, -1)
    return model.network()(x, torch.tensor([100.0, 900.0]), **cond)


CHANGES = ("--channels", 3, "--size", 16, "--given", "low-res:2", "--classes")


def test_grey_becomes_color_larger_given_and_of_classes(diffuse, colors, model):
    ran = diffuse("train", colors, "--init", model, *CHANGES, *STILL).ok()
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
    assert "starting from" not in diffuse("train", "--resume").ok().err
    assert MODEL.read_bytes() == WHOLE.read_bytes()


def test_color_becomes_grey_smaller_and_is_told_nothing(diffuse, colors, images, recipe):
    line = ("train", colors, "--config", recipe, "--classes", "--given", "low-res:2")
    line += ("--variance", "learned", "--steps", 2)
    assert diffuse(*line, "-o", "old.safetensors").code == 0
    changes = ("--channels", 1, "--size", 8, "--given", "nothing", "--no-classes")
    line = ("train", images, "--init", "old.safetensors", *changes, "--variance", "small", *STILL)
    Path("again.toml").write_text(diffuse(*line, "--dry-run").ok().out)
    ran = diffuse(*line).ok()
    rows = table(ran)
    assert list(rows) == ["size", "channels", "variance", "given", "classes", "the rest"]
    diffuse("train", "--config", "again.toml", "-o", WHOLE).ok()
    assert WHOLE.read_bytes() == MODEL.read_bytes()
    Path("flat").mkdir()
    for k, path in enumerate(images.rglob("*.png")):
        shutil.copy(path, f"flat/{k}.png")
    flat = ("train", "flat", "--init", "old.safetensors", *STILL, "-q", "--overwrite")
    diffuse(*flat).fails(3, "or pass --no-classes")
    for name in ("variance", "given", "classes"):
        assert rows[name][-1].startswith("left out")
    made = model_file.load(MODEL)
    assert not made.blueprint.conditions
    kept = numbers({name: rows[name] for name in ("channels", "the rest")})
    assert sum(kept.values()) == sum(t.numel() for t in made.ema.values())
    old = outputs("old.safetensors")[:, :3].mean(1, keepdim=True)
    torch.testing.assert_close(outputs(MODEL), old, rtol=1e-4, atol=1e-5)
    assert diffuse(*line, "--auto-resume").code == 0


def test_pairs_that_are_left_out_are_a_warning(diffuse, images, lab):
    old = lab.trained(*lab.quick, "--given", lab["negatives"], "--steps", 1)
    line = ("train", images, "--init", old, *STILL)
    ran = diffuse(*line).ok()
    assert f"warning: {old} was trained with --given on pairs" in ran.err
    assert "left out: pairs" in table(ran)["given"][-1]
    ran = diffuse(*line, "--given", lab["negatives"], "-o", "next.safetensors")
    assert f"starting from {old}: all " in ran.err


@pytest.mark.parametrize(("first", "then"), mostly_slow([(32, 64), (32, 48), (64, 32)], always=1))
def test_a_model_goes_on_at_another_size(diffuse, undrawn, tmp_path, first, then):
    """With the preset's own levels, attention and, from 64 pixels on, patches."""
    folder = write_images(tmp_path / "some", 6, side=64)
    quick = ("--steps", 1, "--batch-size", 2, "--precision", "fp32")
    line = ("train", folder, "--size", first, "--width", 8, *quick, "-o", "old.safetensors")
    assert diffuse(*line).code == 0
    line = ("train", folder, "--init", "old.safetensors", "--size", then, *STILL)
    ran = diffuse(*line).ok()
    before, after = (model_file.load(path) for path in ("old.safetensors", MODEL))
    assert after.blueprint.space.size == (then, then)
    assert before.blueprint.config.patch == after.blueprint.config.patch
    assert all(after.ema[name].equal(tensor) for name, tensor in before.ema.items())
    assert list(table(ran)) == ["size", "the rest"]


def test_a_dry_run_says_it_and_writes_nothing(diffuse, colors, model, step_takes):
    step_takes(1.0)
    line = ("train", colors, "--init", model, "--dry-run", "--schedule", "linear")
    ran = diffuse(*line, "--channels", 3).ok()
    assert "grey becomes color" in table(ran)["channels"][-1]
    assert table(ran)["noise"][-1].startswith("another schedule")
    ran = diffuse(*line)
    assert "Use --channels 3 to train in color" in ran.err
    assert "starting from" in ran.err
    assert not MODEL.exists()


def test_weights_are_refused_if_they_are_not_numbers(diffuse, images, model):
    found = model_file.load(model)
    name = next(iter(found.ema))
    wrong = {**found.ema, name: torch.full_like(found.ema[name], torch.nan)}
    model_file.save(Path("wrong.safetensors"), replace(found, ema=wrong))
    ran = diffuse("train", images, "--init", "wrong.safetensors", *STILL, "-q")
    ran.fails(4, f"its weights are NaN or infinite: {name}")
    assert not MODEL.with_suffix(".run").exists()


def test_nothing_is_given_without_a_model_too(quick):
    assert quick("--given", "nothing", "--steps", 1, "-q").code == 0
    assert model_file.load(MODEL).blueprint.conditions.given is None
