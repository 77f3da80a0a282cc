"""Training on what is given: what the network is told, exactness, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL, RUN, WHOLE, logged, mostly_slow
from lab import QUICK
from PIL import Image

from diffuse_cli.core.conditions import ConditioningArray
from diffuse_cli.data import read_images
from diffuse_cli.models import model_file
from diffuse_cli.system.events import finish

LEARNS = ("--steps", 120, "--optimizer", "adamw")


# -- what is told ---------------------------------------------------------------------------------


def test_a_pair_is_mirrored_together_and_told_everywhere(quick, images, negatives, shown):
    assert quick("--steps", 6, "--given", negatives, "--given-dropout", 0, "--flip").code == 0
    stored = {np.asarray(Image.open(path)).tobytes() for path in images.rglob("*.png")}
    mirrored = []
    for x0, cond in shown:
        values, known = cond["given"][:, :-1], cond["given"][:, -1:]
        assert torch.equal(known, torch.ones_like(known))
        assert torch.allclose(values, -x0, atol=1e-6)  # 255 - v is -x
        pixels = ((x0[:, 0] + 1) * 127.5).round().numpy().astype(np.uint8)
        assert all({v.tobytes(), v[:, ::-1].tobytes()} & stored for v in pixels)
        mirrored += [v.tobytes() not in stored for v in pixels]
    assert 0.25 < np.mean(mirrored) < 0.75


@pytest.mark.parametrize("augment", ["flip", "flip,zoom,rotate,shift,color"])
def test_a_degradation_is_made_of_the_changed_image_and_drawn_for_each(quick, shown, augment):
    line = ("--given", "mask:random", "--given-dropout", 0, "--augment", augment)
    assert quick("--steps", 8, *line).code == 0
    masks = []
    for x0, cond in shown:
        values, known = cond["given"][:, :-1], cond["given"][:, -1:]
        assert torch.equal(values, x0 * known)
        masks += [tuple(own.flatten().tolist()) for own in known]
    assert len(set(masks)) == len(masks) == 64
    assert 0.3 < np.mean(masks) < 0.7


def test_noise_is_added_to_what_is_known_at_a_level_of_each_sample(quick, shown):
    options = ("--given", "mask:half", "--given-dropout", 0, "--given-noise", 0.5)
    assert quick("--steps", 10, *options).code == 0
    levels = []
    for x0, cond in shown:
        values, known = cond["given"][:, :-1], cond["given"][:, -1:]
        assert torch.equal(values * (1 - known), torch.zeros_like(values))
        levels += [float(v.std()) for v in (values - x0)[..., :4]]
    assert 0 < min(levels) < 0.1
    assert 0.4 < max(levels) < 0.8


def test_label_and_given_are_dropped_by_one_draw(quick, negatives, shown):
    line = ("--classes", "--label-dropout", 0.3, "--given", negatives, "--given-dropout", 0.6)
    assert quick("--steps", 16, *line).code == 0
    given = torch.cat([cond["given"][:, -1].flatten(1).mean(1) for _, cond in shown])
    label = torch.cat([cond["label"] for _, cond in shown])
    assert set(given.tolist()) == {0.0, 1.0}
    assert 0.5 < float((given == 0).float().mean()) < 0.7
    assert 0.2 < float((label == 2).float().mean()) < 0.4
    assert bool(((label != 2) | (given == 0)).all())


def test_it_learns_what_is_given(lab):
    """The image itself, and then nothing."""
    runs = (lab.trained(*lab.quick, *LEARNS, "--given", lab["images"]),
            lab.trained(*lab.quick, *LEARNS))  # fmt: skip
    told, alone = (logged("held_out_loss", model.with_suffix(".run"))[-1] for model in runs)
    assert told < 0.6 * alone


# -- exactness ------------------------------------------------------------------------------------


def test_a_preview_shows_what_is_given_its_samples_and_the_image(quick, images, negatives):
    assert quick("--steps", 4, "--given", negatives).code == 0
    sheet = np.asarray(Image.open(RUN / "previews/step-00000004.png"))
    assert sheet.shape == (4 * 66 - 2, 6 * 66 - 2)
    for row in range(4):
        first, last = (sheet[row * 66 : row * 66 + 64 : 8, x : x + 64 : 8] for x in (0, 5 * 66))
        assert np.array_equal(first, 255 - last)


# -- the model file, and where to begin -----------------------------------------------------------


def test_a_model_file_says_what_is_given(quick, images, negatives, diffuse):
    """The page evaluates with the pairs."""
    assert quick("--steps", 3, "--given", negatives, "--given-noise", 0.25).code == 0
    model = model_file.load(MODEL)
    assert model.blueprint.conditions.given == ConditioningArray(
        channels=1, dropout=0.1, noise=0.25
    )
    assert model.network()(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)
    assert str(negatives) not in MODEL.read_bytes().decode("latin1")
    assert set(model.data["given"]) == {"fingerprint"}
    page = Path("model.run/index.html").read_text(encoding="utf-8")
    assert f"diffuse eval model.safetensors {images} --given {negatives}" in page
    assert rb"\"version\":4" in MODEL.read_bytes()[:9000]
    shown = diffuse("info", MODEL)
    assert "input       pairs: 8x8, grey; dropped from 10%, with noise of up to 0.25" in shown.out
    assert diffuse("info", MODEL, "--json").json["given"]["noise"] == 0.25


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "pairs", "channels"),
    mostly_slow(
        [
            ((8, 8, 3), (1, 8, 8), 1),
            ((8, 8, 2), (8, 8, 3), 3),
            ((8, 8, 3), (8, 8), 1),
            ((3, 8, 8), (8, 8, 1), 1),
            ((8, 8), (8, 8, 1), 1),
            ((8, 8, 8, 2), (1, 8, 8, 8), 1),
        ]
    ),
)
def test_the_axes_of_pairs_are_those_of_data_or_have_a_channel_elsewhere(
    diffuse, tmp_path, data, pairs, channels
):
    """A run, its resume, `sample` and `eval` read the same pairs."""
    draw = np.random.default_rng(0)
    for name, shape in (("data", data), ("pairs", pairs)):
        (tmp_path / name).mkdir()
        for k in range(8):
            np.save(tmp_path / name / f"{k}.npy", draw.normal(size=shape).astype(np.float32))
    line = ("train", "data", "--config", QUICK, "--given", "pairs", "--steps", 2, "-q")
    assert diffuse(*line, "--stop-at", 1).code == 0
    assert diffuse("train", "data", "--resume", "--given", "pairs", "-q").code == 0
    assert len(model_file.load(MODEL).blueprint.conditions.given.mean) == channels
    line = ("--given", "pairs", "-n", 8, "--steps", 2)
    assert diffuse("sample", MODEL, *line, "-o", "samples", "-q").code == 0
    diffuse("eval", MODEL, "data", *line, "--metrics", "marginals").ok()


def test_other_pairs_are_refused_on_resume(quick, negatives, tmp_path):
    mine = shutil.copytree(negatives, tmp_path / "mine")
    assert quick("--steps", 8, "--stop-at", 3, "--given", mine).code == 0
    moved = shutil.move(mine, tmp_path / "moved")
    assert quick("--resume", "--given", moved, "--stop-at", 5).code == 0
    one, other = sorted((moved / "dark").iterdir())[:2]
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    quick("--resume", "--given", moved, "-q").fails(2, "have changed since this run started")
    quick("--resume", "--given", "low-res:2", "-q").fails(2, "low-res:2 differs from the run's")


def test_images_without_a_pair_are_left_out_and_named(quick, negatives, tmp_path, shown):
    some = shutil.copytree(negatives, tmp_path / "some")
    for path in sorted((some / "dark").iterdir())[:12]:
        path.unlink()
    ran = quick("--steps", 12, "--given", some).ok()
    assert "12 images of" in ran.err
    assert "left out: dark/000.png" in ran.err
    for x0, cond in shown:
        values, known = cond["given"][:, :-1], cond["given"][:, -1:]
        assert torch.allclose(values, -x0 * known, atol=1e-6)
    quick("--steps", 1, "--given", some, "--strict", "-o", "b.safetensors", "-q").fails(3)


@pytest.mark.parametrize(("name", "spec"), [("mask", "mask:half"), ("grey", "grey+noise:0")])
def test_a_name_of_a_degradation_and_of_a_folder_is_refused_with_both_spellings(
    quick, negatives, name, spec
):
    Path(name).symlink_to(negatives)
    line = ("--steps", 1, "--channels", 3, "-q")
    ran = quick(*line, "--given", name)
    assert (ran.code, RUN.exists()) == (2, False)
    assert f"--given {name} is a degradation, and a file or folder here" in ran.line
    spellings = re.findall(r"--given (\S+) for", ran.line)
    assert spellings == [f"./{name}", spec]
    for spelling, what in zip(spellings, ("pairs", spec), strict=True):
        quick(*line, "--given", spelling, "--overwrite").ok()
        assert model_file.load(MODEL).blueprint.conditions.given.what == what


@pytest.mark.parametrize(
    "road",
    [
        "--resume",
        "--resume --given mask",
        "--config run.toml",
        "--init model.safetensors --steps 1",
    ],
)
def test_a_degradation_that_is_resolved_stays_one_beside_a_folder_of_its_name(
    diffuse, quick, images, negatives, road
):
    assert quick("--steps", 2, "--stop-at", 1, "--given", "mask", "-q").code == 0
    shutil.copy(RUN / "config.toml", "run.toml")
    Path("mask").symlink_to(negatives)
    out = MODEL if "--resume" in road else WHOLE
    diffuse("train", images, *road.split(), "-o", out, "-q").ok()
    assert model_file.load(out).blueprint.conditions.given.what == "mask"
    assert diffuse("sample", out, "--given", images, "--degrade", "-n", 1, "-q").code == 0


def test_pairs_of_held_out_images_only_are_refused(quick, images, negatives, tmp_path):
    found = finish(read_images(str(images)))
    name = found.names[int(np.flatnonzero(found.held_out)[0])]
    pairs = tmp_path / "pairs"
    (pairs / name).parent.mkdir(parents=True)
    shutil.copy(negatives / name, pairs / name)
    said = "all images with a conditioning image are held out. Add more pairs"
    quick("--steps", 2, "--given", pairs, "-q").fails(3, said)
    assert not RUN.exists()
