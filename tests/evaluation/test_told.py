"""Evaluating models that are told columns of a table."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import in_process
from PIL import Image

from diffuse_cli.commands.ema import ema_lengths

SMALL = (
    "-n", 12, "--steps", 2, "--timesteps", 4, "--train-n", 8, "--precision", "fp32",
)  # fmt: skip


@pytest.fixture(scope="session")
def shades(tmp_path_factory):
    """Images whose brightness is in their table, in two class folders."""
    folder = tmp_path_factory.mktemp("shades") / "shades"
    draw, rows = np.random.default_rng(5), []
    for k in range(200):
        path, level = folder / ("a", "b")[k % 2] / f"{k:03d}.png", draw.uniform(60, 220)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.normal(level, 3, (8, 8)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        rows.append((path.relative_to(folder), f"{level:.2f}", "ab"[k % 2]))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "level", "letter"), *rows])
    return folder


@pytest.fixture(scope="module")
def models(shades, recipe, tmp_path_factory):
    """Models that are told columns, nothing, and columns and classes; the last two hardly
    trained."""
    folder = tmp_path_factory.mktemp("told")
    line = ["train", shades, "--config", recipe, "--optimizer", "adamw", "-q"]
    line += ["--batch-size", 16, "--lr", 0.01]
    for name, steps, options in (
        ("columns", 100, ("--condition-on", "level,letter", "--ema-lengths", 4)),
        ("none", 2, ()),
        ("both", 4, ("--condition-on", "level", "--classes")),
    ):
        out = folder / f"{name}.safetensors"
        assert in_process([*line, "--steps", steps, *options, "-o", out]) == 0
    return folder


@pytest.fixture(scope="module")
def known():
    return []


@pytest.fixture
def told(diffuse, models, shades, known, evaluations):
    """The model of columns, measured once; and the evaluation."""
    if not known:
        ran = diffuse("eval", models / "columns.safetensors", shades, *SMALL, "--json")
        known += [*evaluations, ran]
    evaluation, ran = known
    assert ran.code == 0, ran.err
    return ran, evaluation


def test_what_is_drawn_is_told_the_rows_of_real_images(told):
    ran, evaluation = told
    assert "conditioned on the metadata of the real images" in ran.err
    assert ran.json["settings"]["columns"] == ["level", "letter"]
    assert ran.json["settings"]["guidance"] == 1
    assert set(ran.json["fingerprints"]) == {"data", "table"}
    assert ran.json["part"] == "held-out"
    real, drawn = (
        side.samples.mean((1, 2, 3), dtype=float) for side in (evaluation.real, evaluation.fakes)
    )
    assert np.corrcoef(real[np.arange(12) % len(real)], drawn)[0, 1] > 0.9


def test_other_rows_are_another_bound(diffuse, models, shades, tmp_path, told):
    mixed = shutil.copytree(shades, tmp_path / "mixed")
    with (mixed / "metadata.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    levels = [row[1] for row in rows]
    mixed_rows = [(row[0], level, row[2]) for row, level in zip(rows, levels[::-1], strict=True)]
    with (mixed / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *mixed_rows])
    own = told[0].json
    other = diffuse("eval", models / "columns.safetensors", mixed, *SMALL, "--json").json
    assert own["bits_per_dim"] < other["bits_per_dim"] - 0.1
    assert own["fingerprints"]["data"] == other["fingerprints"]["data"]
    assert own["fingerprints"]["table"] != other["fingerprints"]["table"]


def test_rows_and_classes_of_an_image_are_told_together(diffuse, models, shades):
    ran = diffuse("eval", models / "both.safetensors", shades, *SMALL, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["classes"]) == {"a", "b"}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(diffuse, models, shades, pair):
    line = ("eval", models / "both.safetensors", shades, *SMALL, "--batch-size", 4, "--json")
    one, two = diffuse(*line), pair(*line)
    assert one.code == two.code == 0, two.err
    for name in ("bits_per_dim", "kid"):
        assert two.json[name] == one.json[name]


def test_tune_ema_and_compare_tell_rows(diffuse, models, shades, monkeypatch):
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.08,))
    few = ("-n", 8, "--precision", "fp32")
    line = ("--samplers", "ddim", "--steps", 2, "--guidance", "1,2")
    model = models / "columns.safetensors"
    ran = diffuse("tune", model, shades, *few, *line, "-o", "tuned.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["recommended"]["guidance"] in (1, 2)
    line = ("sample", "tuned.safetensors", "-n", 2, "--on", "level=100", "-q")
    assert diffuse(*line).code == 0
    manifest = json.loads(Path("samples/manifest.json").read_text())
    assert manifest["on"] == [{"level": 100}] * 2
    for metric in ("held-out", "kid"):
        options = () if metric == "held-out" else (*few, "--steps", 2)
        line = ("ema", model, shades, "--metric", metric, *options, "--precision", "fp32")
        assert diffuse(*line).code == 0
    line = (*few, "--steps", 2, "--timesteps", 4, "--json")
    ran = diffuse("compare", model, models / "none.safetensors", shades, *line)
    assert ran.code == 0, ran.err


def test_data_without_the_columns_is_refused(diffuse, models, shades, tmp_path):
    mine = shutil.copytree(shades, tmp_path / "mine")
    (mine / "metadata.csv").write_text("file_name,letter\na/000.png,a\n")
    ran = diffuse("eval", models / "columns.safetensors", mine, *SMALL, "-q")
    assert ran.code == 2
    assert "no column level, which the model is conditioned on. Its columns are: le" in ran.line
