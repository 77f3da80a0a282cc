"""`diffuse sample`: images of a seed, whatever the batch, and a manifest that verifies."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest, pixels
from PIL import Image

from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.samplers import OF_DISTILLED
from diffuse_cli.models import model_file
from diffuse_cli.sampling.generation import generate_batches
from diffuse_cli.sampling.journal import SamplingRecord
from diffuse_cli.sampling.sampling_settings import SamplingSettings

OUT = Path("samples")
QUICK = ("--steps", 5, "--precision", "fp32", "--sampler", "ddim")


@pytest.fixture
def sample(diffuse, model):
    return lambda *arguments: diffuse("sample", model, *QUICK, *arguments)


@pytest.fixture
def of_classes(diffuse, conditional):
    return lambda *arguments: diffuse("sample", conditional, *QUICK, *arguments)


def names(folder=OUT):
    return sorted(p.name for p in Path(folder).iterdir())


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_model_file_is_all_that_is_needed(diffuse, model, tmp_path):
    moved = tmp_path / "elsewhere" / "m.safetensors"
    moved.parent.mkdir()
    shutil.copy(model, moved)
    assert diffuse("sample", moved, "-n", 3, "--steps", 2).code == 0
    assert names() == ["00000.png", "00001.png", "00002.png", "grid.png", "manifest.json"]
    assert pixels(OUT, 0).shape == (8, 8)
    for k in range(2):
        assert np.abs(pixels(OUT, k) - pixels(OUT, k + 1)).max() > 10
    assert manifest()["precision"] in ("fp32", "bf16")


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
    line = ("--seed", 7, "--sampler", "ddim", "--eta", 0.5, "--threshold", 0.9)
    sample("-n", 2, *line, "--gif")
    found = manifest()
    wanted = {
        "seed": 7, "n": 2, "sampler": "ddim", "steps": 5, "eta": 0.5, "weights": "ema",
        "threshold": 0.9, "precision": "fp32",
    }  # fmt: skip
    assert found.items() >= wanted.items()
    assert not {"classes", "guidance", "guidance_interval"} & {*found}
    assert found["model"]["sha256"] == digest(model)
    assert sorted(found["files"]) == [n for n in names() if n != "manifest.json"]
    assert all(digest(OUT / name) == value for name, value in found["files"].items())


def assert_alike(draw, *options):
    """An image is the same among others, in batches of another size."""
    draw("-n", 5, *options, "-o", "a")
    draw("-n", 4, *options, "--batch-size", 3, "-o", "b")
    for k in range(4):
        assert np.abs(pixels("a", k) - pixels("b", k)).max() <= 2


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - OF_DISTILLED))
def test_an_image_is_the_same_whatever_the_number_and_the_batch(sample, of_classes, sampler):
    """Also with a learned variance."""
    assert_alike(sample, "--sampler", sampler)
    assert_alike(of_classes, "--sampler", sampler, "--overwrite")


def test_what_should_change_the_images_does(sample):
    sample("-n", 1, "-o", "a")
    for option in ("--seed 1", "--sampler ddpm", "--weights raw", "--steps 9", "--spacing linspace",
                   "--threshold 1", "--eta 1"):  # fmt: skip
        sample("-n", 1, "-o", "b", "--overwrite", *option.split())
        assert np.abs(pixels("a", 0) - pixels("b", 0)).max() > 0, option
    for same in ((), ("--eta", 0)):
        sample("-n", 1, "-o", "b", "--overwrite", *same)
        assert Path("b/00000.png").read_bytes() == Path("a/00000.png").read_bytes()


def test_the_order_of_unipc_changes_the_images_and_is_in_the_manifest(sample):
    sample("-n", 1, "-o", "a", "--sampler", "unipc", "--steps", 9)
    sample("-n", 1, "-o", "b", "--sampler", "unipc", "--steps", 9, "--order", 2)
    sample("-n", 1, "-o", "c", "--sampler", "unipc", "--steps", 9, "--order", 3)
    assert np.array_equal(pixels("a", 0), pixels("b", 0))
    assert not np.array_equal(pixels("a", 0), pixels("c", 0))
    assert [manifest(f)["order"] for f in "abc"] == [None, 2, 3]


def test_a_gif_shows_every_step(sample):
    sample("-n", 2, "--gif")
    with Image.open(OUT / "denoising.gif") as gif:
        assert gif.n_frames == 5
        first = np.asarray(gif.convert("L"), int)
        gif.seek(gif.n_frames - 1)
        assert np.abs(np.asarray(gif.convert("L"), int) - first).max() > 10


def test_raw_weights_need_keep_raw(lab, recipe, diffuse, tmp_path):
    plain = tmp_path / "plain.toml"
    plain.write_text(recipe.read_text().replace("keep_raw = true", ""))
    made = lab.trained("train", lab["images"], "--config", plain, "--steps", 1)
    ran = diffuse("sample", made, "--weights", "raw", "-q", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (4, "model_lacks")
    assert "--keep-raw" in ran.line
    assert not OUT.exists()


# -- nothing is overwritten -----------------------------------------------------------------------


OTHERS = {
    "--seed 1": "with other settings: seed",
    "--steps 6": "with other settings: steps",
    "--batch-size 3": "with other settings: batch size",
    "--weights raw": "with other settings: weights",
    "--eta 0.5": "with other settings: eta",
}


@pytest.mark.parametrize("finished", [True, False])
def test_samples_of_other_settings_are_refused_before_any_drawing(
    sample, monkeypatch, instead_of_networks, finished
):
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(SamplingRecord, "end", lambda *a: None)
        sample("-n", 2)
    before = {p: p.read_bytes() for p in OUT.rglob("*") if p.is_file()}
    instead_of_networks()
    for option, named in OTHERS.items():
        ran = sample("-n", 2, "-q", *option.split())
        assert ran.code == 5, option
        assert "samples already holds samples" in ran.line
        assert named in ran.line
        assert "--overwrite" in ran.line
        assert {p: p.read_bytes() for p in OUT.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("kept", ["00000.png", "grid.png", "manifest.json", "other.png"])
def test_any_part_of_earlier_samples_is_enough(sample, kept):
    OUT.mkdir()
    (OUT / kept).write_bytes(b"earlier")
    assert sample("-n", 2).code == 5
    assert {path.name: path.read_bytes() for path in OUT.iterdir()} == {kept: b"earlier"}


def test_overwrite_removes_stale_samples_and_nothing_else(sample):
    OUT.mkdir()
    (OUT / "notes.txt").write_text("mine")
    assert sample("-n", 5, "--gif").code == 0
    (OUT / "99999.png").write_bytes(b"not in the manifest")
    assert sample("-n", 2, "--overwrite").code == 0
    assert names() == [
        "00000.png", "00001.png", "99999.png", "grid.png", "manifest.json", "notes.txt"
    ]  # fmt: skip
    assert manifest()["n"] == 2


def test_a_failed_overwrite_keeps_the_earlier_samples(sample, diffuse, lab):
    sample("-n", 2)
    before = {p: p.read_bytes() for p in OUT.iterdir()}
    assert diffuse("sample", lab["text.safetensors"], "--overwrite").code == 4
    assert {p: p.read_bytes() for p in OUT.iterdir()} == before


# -- classes --------------------------------------------------------------------------------------


def same(a, b, count):
    return [np.array_equal(pixels(a, k), pixels(b, k)) for k in range(count)]


def oracle(model, n, labels):
    """The images of a model as the sampler alone draws them, each with its label or with none."""
    loaded = model_file.load(model)
    net = loaded.network()
    found = []
    for k in range(n):
        given = None if labels is None else torch.tensor([labels[k]])

        def infer(x, t, given=given):
            with torch.inference_mode():
                return net(x, t, label=given)

        denoiser = loaded.blueprint.denoiser(infer)
        space, device = loaded.blueprint.space, torch.device("cpu")
        *_, end = generate_batches(
            denoiser, SamplingSettings("ddim", 5), [k], space=space, device=device
        )
        found.append(((end.state.x[0, 0] + 1) * 127.5).round().clamp(0, 255).numpy())
    return found


def test_without_class_every_class_has_its_turn(of_classes):
    assert of_classes("-n", 5, "--gif").code == 0
    found = manifest()
    assert found["classes"] == ["dark", "light", "dark", "light", "dark"]
    assert found["guidance"] == 2
    assert found["guidance_interval"] is None
    assert (OUT / "denoising.gif").exists()


def test_the_classes_are_what_the_manifest_says(of_classes):
    of_classes("-n", 12, "--guidance", 1)
    mean = {"dark": [], "light": []}
    for k, name in enumerate(manifest()["classes"]):
        mean[name].append(pixels(OUT, k).mean())
    assert np.mean(mean["dark"]) + 5 < np.mean(mean["light"])


def test_named_classes_take_turns_in_their_order(of_classes):
    line = ("-n", 5, "--class", "light", "--class", "dark", "--class", "light")
    of_classes(*line, "--guidance", 3, "--guidance-interval", "0.1,7.5")
    found = manifest()
    assert found["classes"] == ["light", "dark", "light", "light", "dark"]
    assert found["guidance"] == 3
    assert found["guidance_interval"] == [0.1, 7.5]


@pytest.mark.parametrize("names", [(), ("light",), ("light", "light", "dark")], ids=str)
def test_an_image_of_a_class_list_is_the_same_whatever_the_number_and_the_batch(of_classes, names):
    line = [word for name in names for word in ("--class", name)]
    assert_alike(of_classes, *line)
    assert manifest("a")["classes"][:4] == manifest("b")["classes"]


def test_guidance_0_is_the_model_of_no_class(of_classes, conditional):
    of_classes("-n", 4, "--guidance", 0, "--class", "dark", "--batch-size", 1, "-o", "dark")
    of_classes("-n", 4, "--guidance", 0, "--class", "light", "--batch-size", 1, "-o", "light")
    assert all(same("dark", "light", 4))
    for k, expected in enumerate(oracle(conditional, 4, None)):
        assert np.abs(pixels("dark", k) - expected).max() <= 1


def test_guidance_1_is_the_conditional_model(of_classes, conditional):
    of_classes("-n", 4, "--guidance", 1, "--batch-size", 1, "-o", "one")
    for k, expected in enumerate(oracle(conditional, 4, [0, 1, 0, 1])):
        assert np.abs(pixels("one", k) - expected).max() <= 1
    of_classes("-n", 4, "--guidance", 1, "--class", "dark", "--batch-size", 1, "-o", "dark")
    assert same("one", "dark", 4) == [True, False, True, False]


def test_an_interval_bounds_guidance(of_classes):
    of_classes("-n", 3, "--guidance", 1, "-o", "one")
    of_classes("-n", 3, "--guidance", 6, "-o", "six")
    of_classes("-n", 3, "--guidance", 6, "--guidance-interval", "1e8,1e9", "-o", "nowhere")
    of_classes("-n", 3, "--guidance", 6, "--guidance-interval", "0,1e9", "-o", "everywhere")
    of_classes("-n", 3, "--guidance", 6, "--guidance-interval", "0.5,2", "-o", "within")
    assert all(same("nowhere", "one", 3))
    assert all(same("everywhere", "six", 3))
    assert not any(same("within", "six", 3))
    assert not any(same("within", "one", 3))


def cells(grid):
    """The images of a grid of 8x8 images, which are shown eightfold, row by row."""
    sheet = np.asarray(Image.open(grid), int)
    assert sheet.ndim == 2
    rows, columns = ((side + 2) // 66 for side in sheet.shape)
    return [
        [sheet[66 * r :, 66 * c :][:64, :64][::8, ::8] for c in range(columns)] for r in range(rows)
    ]


@pytest.mark.parametrize(
    ("n", "names", "rows"),
    [
        (6, "", [[0, 2, 4], [1, 3, 5]]),
        (5, "", [[0, 2, 4], [1, 3, None]]),
        (3, "light dark", [[0, 2], [1, None]]),
        (7, "light dark light", [[0, 2, 3, 5, 6], [1, 4, None, None, None]]),
        (4, "light", [[0, 1], [2, 3]]),
        (2, "", [[0, 1]]),
    ],
)
def test_the_grid_has_a_row_for_each_class(of_classes, n, names, rows):
    of_classes("-n", n, *[word for name in names.split() for word in ("--class", name)])
    found = cells(OUT / "grid.png")
    assert [len(row) for row in found] == [len(row) for row in rows]
    for row, expected in zip(found, rows, strict=True):
        for cell, k in zip(row, expected, strict=True):
            assert np.array_equal(cell, np.full((8, 8), 255) if k is None else pixels(OUT, k))


def test_a_gif_of_a_later_range_shows_that_range(sample):
    """The steps of earlier samples in the folder are not kept."""
    sample("-n", 2)
    ran = sample("--range", "2:4", "--gif")
    assert ran.code == 0, ran.err
    assert (OUT / "denoising.gif").exists()
