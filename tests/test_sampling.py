"""`diffuse sample`: images of a seed, whatever the batch, and a manifest that verifies."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

OUT = Path("samples")
QUICK = ("--steps", 5, "--precision", "fp32")


@pytest.fixture
def sample(diffuse, model):
    return lambda *arguments: diffuse("sample", model, *QUICK, *arguments)


def pixels(folder, k):
    return np.asarray(Image.open(Path(folder) / f"{k:05d}.png"), int)


def names(folder=OUT):
    return sorted(p.name for p in Path(folder).iterdir())


def manifest(folder=OUT):
    return json.loads((Path(folder) / "manifest.json").read_text())


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_model_file_is_all_that_is_needed(diffuse, model, tmp_path):
    moved = tmp_path / "elsewhere" / "m.safetensors"
    moved.parent.mkdir()
    shutil.copy(model, moved)
    assert diffuse("sample", moved, *QUICK, "-n", 3).code == 0
    assert names() == ["00000.png", "00001.png", "00002.png", "grid.png", "manifest.json"]
    assert pixels(OUT, 0).shape == (8, 8)


def test_stdout_lists_every_picture(sample):
    assert sample("-n", 2, "-o", "here").out.split() == [
        "here/00000.png", "here/00001.png", "here/grid.png"
    ]  # fmt: skip
    found = sample("-n", 1, "--json", "--no-grid").json
    assert found["images"] == ["samples/00000.png"]
    assert found["grid"] is None
    assert found["gif"] is None
    assert found["manifest"] == "samples/manifest.json"


def test_the_manifest_says_how_the_images_were_made_and_verifies(sample, model):
    sample("-n", 2, "--seed", 7, "--sampler", "ddim", "--eta", 0.5, "--gif")
    found = manifest()
    wanted = {"seed": 7, "n": 2, "sampler": "ddim", "steps": 5, "eta": 0.5, "weights": "ema"}
    assert found.items() >= wanted.items()
    assert found["precision"] == "fp32"
    assert found["model"]["sha256"] == digest(model)
    assert sorted(found["files"]) == [n for n in names() if n != "manifest.json"]
    assert all(digest(OUT / name) == value for name, value in found["files"].items())


def test_automatic_precision_is_resolved_in_the_manifest(diffuse, model):
    diffuse("sample", model, "-n", 1, "--steps", 2)
    assert manifest()["precision"] in ("fp32", "bf16")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_an_image_is_the_same_whatever_the_number_and_the_batch(sample, sampler):
    sample("-n", 7, "--sampler", sampler, "-o", "a")
    sample("-n", 7, "--sampler", sampler, "--batch-size", 3, "-o", "b")
    sample("-n", 2, "--sampler", sampler, "-o", "c")
    for k in range(7):
        assert np.abs(pixels("a", k) - pixels("b", k)).max() <= 2
    for k in range(2):
        assert np.abs(pixels("a", k) - pixels("c", k)).max() <= 2


def test_an_equal_command_gives_equal_files(sample):
    sample("-n", 3, "--gif", "-o", "a")
    sample("-n", 3, "--gif", "-o", "b")
    assert manifest("a") == manifest("b")


@pytest.mark.parametrize(
    "option",
    ["--seed 1", "--sampler ddpm", "--eta 1", "--weights raw", "--steps 9", "--spacing linspace"],
)
def test_what_should_change_the_images_does(sample, option):
    sample("-n", 1, "-o", "a")
    sample("-n", 1, "-o", "b", *option.split())
    assert np.abs(pixels("a", 0) - pixels("b", 0)).max() > 0


def test_images_of_a_seed_differ(sample):
    sample("-n", 3)
    assert np.abs(pixels(OUT, 0) - pixels(OUT, 1)).max() > 10
    assert np.abs(pixels(OUT, 1) - pixels(OUT, 2)).max() > 10


def test_eta_1_is_not_far_from_eta_0_where_it_is_0(sample):
    sample("-n", 1, "-o", "a")
    sample("-n", 1, "-o", "b", "--eta", 0)
    assert np.array_equal(pixels("a", 0), pixels("b", 0))


def test_a_gif_shows_every_step(sample):
    sample("-n", 2, "--gif")
    with Image.open(OUT / "denoising.gif") as gif:
        assert gif.n_frames >= 2
        first = np.asarray(gif.convert("L"), int)
        gif.seek(gif.n_frames - 1)
        assert np.abs(np.asarray(gif.convert("L"), int) - first).max() > 10


def test_raw_weights_need_keep_raw(train, recipe, diffuse, tmp_path):
    plain = tmp_path / "plain.toml"
    plain.write_text(recipe.read_text().replace("keep_raw = true", ""))
    train("--config", plain, "--steps", 1)
    ran = diffuse("sample", "model.safetensors", "--weights", "raw", "-q")
    assert ran.code == 4
    assert "--keep-raw" in ran.line
    assert not OUT.exists()


# -- nothing is overwritten -----------------------------------------------------------------------


def test_a_folder_that_holds_samples_is_refused_before_any_computing(sample, monkeypatch):
    sample("-n", 2)
    before = {p: p.read_bytes() for p in OUT.iterdir()}
    monkeypatch.setattr("diffuse_cli.sampling.load_denoiser", lambda *a: 1 / 0)
    ran = sample("-n", 2, "-q")
    assert ran.code == 5
    assert "--overwrite" in ran.line
    assert {p: p.read_bytes() for p in OUT.iterdir()} == before


@pytest.mark.parametrize("kept", ["00000.png", "grid.png", "manifest.json"])
def test_any_part_of_earlier_samples_is_enough(sample, kept):
    OUT.mkdir()
    (OUT / kept).write_bytes(b"earlier")
    assert sample("-n", 2).code == 5
    assert (OUT / kept).read_bytes() == b"earlier"


def test_overwrite_removes_stale_samples_and_nothing_else(sample):
    sample("-n", 5, "--gif")
    (OUT / "notes.txt").write_text("mine")
    (OUT / "99999.png").write_bytes(b"not in the manifest")
    assert sample("-n", 2, "--overwrite").code == 0
    assert names() == [
        "00000.png", "00001.png", "99999.png", "grid.png", "manifest.json", "notes.txt"
    ]  # fmt: skip
    assert manifest()["n"] == 2


def test_a_folder_with_other_things_is_used(sample):
    OUT.mkdir()
    (OUT / "notes.txt").write_text("mine")
    assert sample("-n", 1).code == 0
    assert (OUT / "notes.txt").read_text() == "mine"


def test_a_failed_overwrite_keeps_the_earlier_samples(sample, diffuse):
    sample("-n", 2)
    before = {p: p.read_bytes() for p in OUT.iterdir()}
    Path("not.safetensors").write_text("no model")
    assert diffuse("sample", "not.safetensors", "--overwrite").code == 4
    assert {p: p.read_bytes() for p in OUT.iterdir()} == before
