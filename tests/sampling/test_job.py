"""`diffuse sample`: images of a seed, whatever the batch, and a manifest that verifies."""

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
from diffuse_cli.system.files import sha256

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


def test_the_model_file_is_enough_and_the_manifest_and_stdout_say_what_was_made(diffuse, model):
    Path("elsewhere").mkdir()
    moved = shutil.copy(model, "elsewhere/m.safetensors")
    line = ("--seed", 7, "--steps", 5, "--sampler", "ddim", "--eta", 0.5, "--threshold", 0.9)
    ran = diffuse("sample", moved, "-n", 3, *line, "--gif", "-o", "here/samples")
    made = ["00000.png", "00001.png", "00002.png", "denoising.gif", "grid.png"]
    folder = Path("here/samples")
    assert names(folder) == [*made, "manifest.json"]
    assert sorted(ran.out.split()) == [f"here/samples/{name}" for name in made]
    assert pixels(folder, 0).shape == (8, 8)
    for k in range(2):
        assert np.abs(pixels(folder, k) - pixels(folder, k + 1)).max() > 10
    found = manifest(folder)
    wanted = {
        "seed": 7, "n": 3, "sampler": "ddim", "steps": 5, "eta": 0.5, "weights": "ema",
        "threshold": 0.9,
    }  # fmt: skip
    assert found.items() >= wanted.items()
    assert found["precision"] in ("fp32", "bf16")
    assert not {"classes", "guidance", "guidance_interval"} & {*found}
    assert found["model"]["sha256"] == sha256(model)
    assert found["files"] == {name: sha256(folder / name) for name in made}
    found = diffuse("sample", moved, "-n", 1, "--steps", 1, "--json", "--no-grid").json
    assert found["images"] == ["samples/00000.png"]
    assert found["grid"] is found["gif"] is None
    assert found["manifest"] == "samples/manifest.json"


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


def test_a_gif_shows_every_step_of_its_range(sample):
    """The steps of earlier samples in the folder are not kept."""
    sample("-n", 2)
    sample("--range", "2:4", "--gif").ok()
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
    for option in ("--seed 1", "--steps 6", "--batch-size 3", "--weights raw", "--eta 0.5"):
        name = option[2:].rpartition(" ")[0].replace("-", " ")
        said = f"samples already holds samples with other settings: {name}"
        sample("-n", 2, "-q", *option.split()).fails(5, said, "--overwrite")
        assert {p: p.read_bytes() for p in OUT.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("kept", ["00000.png", "grid.png", "manifest.json", "other.png"])
def test_any_part_of_earlier_samples_is_enough(sample, kept):
    OUT.mkdir()
    (OUT / kept).write_bytes(b"earlier")
    assert sample("-n", 2).code == 5
    assert {path.name: path.read_bytes() for path in OUT.iterdir()} == {kept: b"earlier"}


def test_an_animation_stays_when_images_are_added(sample):
    """It shows the first images. A grid shows all, and is removed."""
    assert sample("-n", 2, "--gif").code == 0
    before = (OUT / "denoising.gif").read_bytes()
    assert sample("-n", 4, "--no-grid").code == 0
    assert (OUT / "denoising.gif").read_bytes() == before
    assert not (OUT / "grid.png").exists()
    assert "denoising.gif" in manifest()["files"]


def test_overwrite_removes_stale_samples_and_nothing_else_and_nothing_if_it_fails(
    sample, diffuse, lab
):
    OUT.mkdir()
    (OUT / "notes.txt").write_text("mine")
    assert sample("-n", 5, "--gif").code == 0
    (OUT / "99999.png").write_bytes(b"not in the manifest")
    before = {p: p.read_bytes() for p in OUT.iterdir()}
    assert diffuse("sample", lab["text.safetensors"], "--overwrite").code == 4
    assert {p: p.read_bytes() for p in OUT.iterdir()} == before
    assert sample("-n", 2, "--overwrite").code == 0
    assert names() == [
        "00000.png", "00001.png", "99999.png", "grid.png", "manifest.json", "notes.txt"
    ]  # fmt: skip
    assert manifest()["n"] == 2


# -- classes --------------------------------------------------------------------------------------


def same(a, b, count):
    return [np.array_equal(pixels(a, k), pixels(b, k)) for k in range(count)]


def oracle(model, n, labels):
    """The images of a model as the sampler alone draws them, each with its label or with none."""
    loaded = model_file.load(model)
    net = loaded.network()
    space, device = loaded.blueprint.space, torch.device("cpu")
    for k in range(n):
        given = None if labels is None else torch.tensor([labels[k]])

        def infer(x, t, given=given):
            with torch.inference_mode():
                return net(x, t, label=given)

        denoiser, settings = loaded.blueprint.denoiser(infer), SamplingSettings("ddim", 5)
        *_, end = generate_batches(denoiser, settings, [k], space=space, device=device)
        yield ((end.state.x[0, 0] + 1) * 127.5).round().clamp(0, 255).numpy()


def test_classes_have_their_turn_or_those_that_are_named_in_their_order(of_classes):
    assert of_classes("-n", 11, "--gif").code == 0
    found = manifest()
    assert found["classes"] == ["dark", "light"] * 5 + ["dark"]
    assert (found["guidance"], found["guidance_interval"]) == (2, None)
    assert (OUT / "denoising.gif").exists()
    means = [pixels(OUT, k).mean() for k in range(11)]
    assert np.mean(means[::2]) + 5 < np.mean(means[1::2])
    line = ("-n", 5, "--class", "light", "--class", "dark", "--class", "light", "-o", "named")
    of_classes(*line, "--guidance", 3, "--guidance-interval", "0.1,7.5")
    found = manifest("named")
    assert found["classes"] == ["light", "dark", "light", "light", "dark"]
    assert (found["guidance"], found["guidance_interval"]) == (3, [0.1, 7.5])


@pytest.mark.parametrize("names", [(), ("light",), ("light", "light", "dark")], ids=str)
def test_an_image_of_a_class_list_is_the_same_whatever_the_number_and_the_batch(of_classes, names):
    line = [word for name in names for word in ("--class", name)]
    assert_alike(of_classes, *line)
    assert manifest("a")["classes"][:4] == manifest("b")["classes"]


def test_guidance_0_is_the_model_of_no_class_and_1_the_conditional_one(of_classes, conditional):
    for name, *options in (
        ("none", 0, "--class", "dark"), ("other", 0, "--class", "light"),
        ("one", 1), ("dark", 1, "--class", "dark"),
    ):  # fmt: skip
        of_classes("-n", 4, "--batch-size", 1, "-o", name, "--guidance", *options)
    assert all(same("none", "other", 4))
    assert same("one", "dark", 4) == [True, False, True, False]
    for name, labels in (("none", None), ("one", [0, 1, 0, 1])):
        for k, expected in enumerate(oracle(conditional, 4, labels)):
            assert np.abs(pixels(name, k) - expected).max() <= 1


def test_an_interval_bounds_guidance(of_classes):
    for name, scale, *levels in (
        ("one", 1), ("six", 6), ("nowhere", 6, "1e8,1e9"), ("everywhere", 6, "0,1e9"),
        ("within", 6, "0.5,2"),
    ):  # fmt: skip
        interval = ("--guidance-interval", *levels) if levels else ()
        of_classes("-n", 3, "--guidance", scale, *interval, "-o", name)
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
