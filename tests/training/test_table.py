"""Training on columns of a table: what is told, exactness, where to begin, what is refused."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import MODEL, RUN, manifest, pixels
from lab import QUICK, write_rows
from PIL import Image

from diffuse_cli.core.conditions import LabelColumn, NumberColumn
from diffuse_cli.models import model_file

BOTH = ("--condition-on", "level,side")


def write_table(folder, rows, *names):
    write_rows(folder, [("file_name", "level", "side", *names), *rows])


def read_table(folder):
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.fixture(scope="session")
def shades(lab):
    return lab["shades"]


@pytest.fixture
def mine(shades, tmp_path):
    """A copy to change."""
    return shutil.copytree(shades, tmp_path / "mine")


@pytest.fixture
def learn(diffuse, shades):
    return lambda *line, data=shades: diffuse("train", data, "--config", QUICK, *line)


@pytest.fixture(scope="session")
def follower(lab, shades):
    """A model of both columns that has learned them."""
    line = ("train", shades, "--config", QUICK, *BOTH, "--steps", 150, "--batch-size", 16)
    return lab.trained(*line, "--width", 32, "--lr", 0.01)


# -- what is told, and that it is followed --------------------------------------------------------


def test_each_image_is_told_its_own_row(learn, shown):
    assert learn("--steps", 10, *BOTH, "--label-dropout", 0).code == 0
    level = model_file.load(MODEL).blueprint.conditions.table.columns[0]
    missing = 0
    for x0, cond in shown:
        pixels, (codes, sides) = (x0 + 1) * 127.5, cond["row"].T
        left, right = pixels[..., :4].mean((1, 2, 3)), pixels[..., 4:].mean((1, 2, 3))
        assert torch.equal(sides, (left > right).float())
        told = ~codes.isnan()
        missing += int((~told).sum())
        numbers = level.mean + level.deviation * codes
        assert torch.allclose(torch.maximum(left, right)[told], numbers[told], atol=4)
    assert 0 < missing < 10


def test_rows_and_classes_and_what_is_given_go_together(diffuse, lab):
    """Training drops columns and classes together, so tasks take them together."""
    line = ("train", lab["grey"], "--config", QUICK, "--steps", 2, *BOTH, "--classes")
    diffuse(*line, "--given", "low-res:2", "--strict").ok()
    conditions = model_file.load(MODEL).blueprint.conditions
    assert all((conditions.classes, conditions.given, conditions.table))
    told = ("--class", "dark", "--on", "level=3", "--given", lab["grey"], "--degrade")
    diffuse("sample", MODEL, *told, "-n", 1, "--steps", 2, "--json").ok()
    assert set(map(str, manifest()["on"])) == {"{'level': 3.0}"}
    assert diffuse(*line, "--overwrite").code == 0
    picture = lab.sample("grey")
    for line in (("vary", MODEL, picture), ("interpolate", MODEL, picture, picture)):
        said = "--class is missing: the model was not trained to use its columns"
        diffuse(*line, "--on", "level=3", "-q").fails(2, said)


def halves(folder):
    """The means of each sample's left half and of its right one, in order, and what it was told."""
    found = np.stack([pixels(folder, k) for k in range(len(manifest(folder)["images"]))])
    return found[..., :4].mean((1, 2)), found[..., 4:].mean((1, 2)), manifest(folder)["on"]


def test_samples_follow_what_they_are_told(diffuse, follower):
    levels = (80, 120, 160, 200)
    on = [word for level in levels for word in ("--on", f"level={level}")]
    line = ("sample", follower, "-n", 32, *on, "--on", "side=left", "--on", "side=right")
    assert diffuse(*line, "-q").code == 0
    left, right, told = halves("samples")
    found = np.maximum(left, right)
    assert [t["level"] for t in told[:4]] == [80, 80, 120, 120]
    wanted = np.array([t["level"] for t in told])
    assert np.abs(found - wanted).mean() < 10  # 45 if they were drawn at random
    assert np.corrcoef(found, wanted)[0, 1] > 0.98
    assert ((left > right) == np.array([t["side"] == "right" for t in told])).mean() > 0.9
    sheet = np.asarray(Image.open("samples/grid.png"))
    assert sheet.shape == (8 * 66 - 2, 4 * 66 - 2)  # a row for each that is told otherwise


def test_a_column_may_be_left_out(diffuse, follower):
    line = ("sample", follower, "-n", 16, "--on", "level=80", "--on", "level=200", "-q")
    assert diffuse(*line).code == 0
    left, right, told = halves("samples")
    assert {*map(tuple, told)} == {("level",)}
    dark, light = ((left + right)[k::2].mean() / 2 for k in (0, 1))
    assert light - dark > 100  # 120 is right, and 0 if they were told nothing
    assert abs((left - right).mean()) < 20  # 40 if all were told one side


def test_nothing_told_is_drawn_once_a_step_and_guidance_can_be_asked_for(diffuse, follower, shades):
    for n, line in enumerate([(), ("--guidance", 3), ("--on", "side=left", "--guidance", 3)]):
        diffuse("sample", follower, "-n", 2, "--steps", 2, *line, "-o", f"s{n}").ok()
        found = manifest(f"s{n}")
        assert found["guidance"] == (3 if n else 1)
        assert ("on" in found) == (n == 2)
    picture = shades / "000.png"
    for task in (("sample", follower), ("vary", follower, picture),
                 ("interpolate", follower, picture, picture)):  # fmt: skip
        ran = diffuse(*task, "-n", 2, "--steps", 2, "--on", "level=500", "-o", task[0])
        assert "warning: --on level=500: outside 6" in ran.err


def test_a_preview_has_a_row_for_quantiles_of_the_first_column(learn):
    assert learn("--steps", 4, *BOTH).code == 0
    sheet = np.asarray(Image.open(RUN / "previews/step-00000004.png"))
    assert sheet.shape == (4 * 66 - 2, 5 * 66 - 2)
    truths = [sheet[row * 66 : row * 66 + 64, 4 * 66 :].max() for row in range(4)]
    assert truths == sorted(truths)
    assert truths[-1] - truths[0] > 50


# -- exactness ------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_columns_that_it_began_with(learn, mine):
    assert learn("--steps", 4, "--stop-at", 2, *BOTH, data=mine).code == 0
    rows = read_table(mine)
    for k, row in enumerate(rows):
        (mine / row[0]).rename(mine / f"new{k}{row[0]}")
        row[0] = f"new{k}{row[0]}"
    write_table(mine, rows)  # other names, the same rows
    assert learn("--resume", "--stop-at", 3, data=mine).code == 0
    rows[7][1] = "61"
    write_table(mine, rows)
    learn("--resume", "-q", data=mine).fails(2, "has changed since this run started")
    said = "--condition-on side differs from the run's level,side"
    learn("--resume", "--condition-on", "side", "-q", data=mine).fails(2, said)
    (mine / rows[0][0]).unlink()  # other images: a warning, and the scale of numbers stays
    before = model_file.load(next((RUN / "checkpoints").iterdir())).blueprint.conditions
    assert learn("--resume", data=mine).code == 0
    assert model_file.load(MODEL).blueprint.conditions == before


# -- the model file, and where to begin -----------------------------------------------------------


def test_a_model_file_says_what_is_told_and_only_then_is_newer(follower, learn, diffuse):
    level, side = model_file.load(follower).blueprint.conditions.table.columns
    assert isinstance(level, NumberColumn)
    assert 60 <= level.low < 70 < 210 < level.high <= 220
    assert 0.03 < level.missing < 0.07
    assert side == LabelColumn(name="side", values=("left", "right"))
    assert set(model_file.load(follower).data["table"]) == {"fingerprint"}
    assert learn("--steps", 3, "--no-keep-weak").code == 0
    told, plain = (path.read_bytes()[:9000] for path in (follower, MODEL))
    assert rb"\"version\":5" in told
    assert rb"\"version\":2" in plain
    assert not [word for word in (b"table", b"condition_on", b"given") if word in plain]
    shown = diffuse("info", follower).out
    assert "columns     level: 6" in shown
    assert "side: 2 labels: left, right" in shown
    found = diffuse("info", follower, "--json").json
    assert found["columns"][1]["values"] == ["left", "right"]


def test_a_model_that_was_told_nothing_begins_as_it_was(learn, diffuse, shades):
    assert learn("--steps", 5, "-o", "first.safetensors").code == 0
    line = ("train", shades, "--init", "first.safetensors", "--steps", 1, "--lr", 0, *BOTH)
    assert diffuse(*line).code == 0
    before, after = model_file.load("first.safetensors"), model_file.load(MODEL)
    assert all(torch.equal(after.ema[n], v) for n, v in before.ema.items())
    x, t, row = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500]), torch.tensor([[1.0, 0]] * 2)
    with torch.no_grad():
        assert torch.equal(before.network()(x, t), after.network()(x, t, row=row))


def test_init_takes_columns_and_labels_by_their_names(follower, diffuse, mine):
    renamed = {"left": "north", "right": "right"}
    rows = [(*row[:2], renamed[row[2]], k) for k, row in enumerate(read_table(mine))]
    write_table(mine, rows[:150], "place")
    line = ("train", mine, "--init", follower, "--steps", 1, "--lr", 0)
    ran = diffuse(*line, "--condition-on", "place,side,level").ok()
    assert "50 images without a row in metadata.csv, so without a condition: 150.png" in ran.err
    old, new = model_file.load(follower), model_file.load(MODEL)
    theirs = old.blueprint.conditions.table.columns[0]
    _, side, level = new.blueprint.conditions.table.columns
    assert (level.mean, level.deviation) == (theirs.mean, theirs.deviation)
    assert level.missing > 0.25
    assert side.values == ("north", "right")
    rows = [m.ema[f"row_embedding.{1}.weight"] for m in (old, new)]
    assert torch.equal(rows[1][1:], rows[0][1:])
    assert not rows[1][0].any()
    name = "linear_1.weight"
    assert torch.equal(new.ema[f"row_embedding.2.{name}"], old.ema[f"row_embedding.0.{name}"])
    assert not new.ema["row_embedding.0.linear_2.weight"].any()
    assert new.ema["row_embedding.0.linear_1.weight"].any()
    assert diffuse(*line, "-o", "same.safetensors").code == 0  # its own columns, without asking
    same = model_file.load("same.safetensors").blueprint.conditions.table
    assert [*same.names] == ["level", "side"]


def test_columns_that_are_left_out_leave_what_was_drawn_without_them(follower, diffuse, shades):
    line = ("train", shades, "--init", follower, "--steps", 1, "--lr", 0)
    ran = diffuse(*line, "--condition-on", "level").ok()
    assert "left out: side, at first like a model run without them" in ran.err
    old, new = model_file.load(follower), model_file.load(MODEL)
    x, t, row = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500]), torch.tensor([[0.5], [-1]])
    untold = torch.full((2, 1), torch.nan)
    with torch.no_grad():
        before = old.network()(x, t, row=torch.cat([row, untold], 1))
        after = new.network()(x, t, row=row)
        assert torch.allclose(before, after, atol=1e-5)
        told = torch.cat([row, torch.zeros(2, 1)], 1)
        assert not torch.allclose(before, old.network()(x, t, row=told), atol=1e-3)


# -- tasks, and info of images ---------------------------------------------------------------------


def test_tasks_tell_columns(diffuse, learn, follower, shades):
    picture, line = shades / "000.png", ("-n", 2, "--steps", 4, "--json")
    varied = ("vary", follower, picture, "--strength", 1, *line, "--guidance", 1)
    for level in (80, 200):
        on = ("--on", f"level={level}", "--on", "side=left", "-o", f"v{level}")
        diffuse(*varied, *on).ok()
    (_, dark, told), (_, light, _) = (halves(f"v{level}") for level in (80, 200))
    assert told == [{"level": 80, "side": "left"}] * 2
    assert dark.mean() + 40 < light.mean()
    plain = ("--schedule", "cosine", "--target", "v", "--weighting", "min-snr")
    assert learn("--steps", 1, *BOTH, *plain).code == 0
    between = ("interpolate", MODEL, picture, shades / "001.png", "--steps", 20, "-n", 3)
    assert diffuse(*between, "--on", "side=left", "--on", "level=100").code == 0


def test_info_of_images_shows_columns_and_what_would_be_refused(diffuse, mine):
    rows = [(*row, f"caption {k}", 5) for k, row in enumerate(read_table(mine))]
    write_table(mine, rows, "caption", "same")
    ran = diffuse("info", mine, "--json").ok()
    found = ran.json["columns"]
    assert found["level"].startswith("6")
    assert found["side"] == "2 labels: left, right"
    assert found["same"] == "every training image has 5, so there is nothing to learn"
    assert "not named as images" not in diffuse("info", mine).out
    (mine / "metadata.csv").write_text("broken")
    ran = diffuse("info", mine, "--json").ok()
    assert "metadata.csv has no column file_name" in ran.err
    assert "columns" not in ran.json


# -- what is refused ------------------------------------------------------------------------------


def test_labels_that_do_not_fit_into_a_model_file_are_refused(learn, mine):
    write_table(mine, [(f"{k:03d}.png", f"{'x' * 9000}{k % 100}", "") for k in range(200)])
    ran = learn("--steps", 1, "--condition-on", "level", "-q", data=mine)
    ran.fails(3, "do not fit into a model file")


def test_a_model_that_is_always_told_says_so(diffuse, learn, shades):
    assert learn("--steps", 1, *BOTH, "--label-dropout", 0).code == 0
    said = "--on is missing for side: the model was trained with --label-dropout 0"
    diffuse("sample", MODEL, "-n", 1, "--on", "level=100", "-q").fails(2, said)
    # Some images had no level.
    diffuse("sample", MODEL, "-n", 1, "--on", "side=left", "--steps", 2, "-q").ok()
    said = "needs every column. Use diffuse sample --on"
    diffuse("noise-demo", shades / "000.png", "--model", MODEL, "-q").fails(2, said)
