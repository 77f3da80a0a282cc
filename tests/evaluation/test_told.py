"""Evaluating models that are told columns of a table."""

import csv
import shutil

import numpy as np
import pytest
from conftest import manifest
from lab import write_rows

from diffuse_cli.commands.ema import ema_lengths

SMALL = ("-n", 12, "--steps", 2, "--timesteps", 4, "--train-n", 8, "--precision", "fp32")


@pytest.fixture(scope="module")
def columns(lab):
    """A model that is told two columns."""
    options = ("--condition-on", "level,side", "--ema-lengths", 4, "--optimizer", "adamw")
    line = ("train", lab["shades"], "--config", lab["tiny"], "--batch-size", 16, "--lr", 0.01)
    return lab.trained(*line, "--steps", 100, *options)


@pytest.fixture(scope="module")
def both(lab):
    """A model that is told a column and classes."""
    line = ("train", lab["grey"], "--config", lab["tiny"], "--steps", 4)
    return lab.trained(*line, "--condition-on", "level", "--classes")


def test_what_is_drawn_is_told_the_rows_of_real_images_and_others_are_another_bound(
    diffuse, lab, columns, tmp_path, evaluations
):
    ran = diffuse("eval", columns, lab["shades"], *SMALL, "--json").ok()
    assert "conditioned on the metadata of the real images" in ran.err
    own = ran.json
    assert own["settings"]["columns"] == ["level", "side"]
    assert own["settings"]["guidance"] == 1
    assert own["fingerprints"].keys() == {"data", "table"}
    assert own["part"] == "held-out"
    real, drawn = (
        side.samples.mean((1, 2, 3), dtype=float)
        for side in (evaluations[0].real, evaluations[0].fakes)
    )
    assert np.corrcoef(real[np.arange(12) % len(real)], drawn)[0, 1] > 0.9
    mixed = shutil.copytree(lab["shades"], tmp_path / "mixed")
    with (mixed / "metadata.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    levels = [row[1] for row in rows]
    mixed_rows = [(row[0], level, row[2]) for row, level in zip(rows, levels[::-1], strict=True)]
    write_rows(mixed, [head, *mixed_rows])
    other = diffuse("eval", columns, mixed, *SMALL, "--json").json
    assert own["bits_per_dim"] < other["bits_per_dim"] - 0.1
    assert own["fingerprints"]["data"] == other["fingerprints"]["data"]
    assert own["fingerprints"]["table"] != other["fingerprints"]["table"]
    write_rows(mixed, [("file_name", "side"), ("000.png", "left")])
    ran = diffuse("eval", columns, mixed, *SMALL, "-q")
    ran.fails(2, "no column level, which the model is conditioned on. Its columns are: si")


def test_rows_and_classes_of_an_image_are_told_together(diffuse, lab, both, tmp_path):
    other = shutil.copytree(lab["beside"], tmp_path / "other")
    shutil.copy(lab["grey"] / "metadata.csv", other)
    ran = diffuse("eval", both, other, *SMALL, "--json").ok()
    assert ran.json["classes"].keys() == {"dark", "light"}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(diffuse, lab, both, pair):
    line = ("eval", both, lab["grey"], *SMALL, "--batch-size", 4, "--json")
    one, two = diffuse(*line), pair(*line)
    assert one.code == two.code == 0, two.err
    for name in ("bits_per_dim", "kid"):
        assert two.json[name] == one.json[name]


def test_tune_ema_and_compare_tell_rows(diffuse, lab, columns, monkeypatch):
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.08,))
    few, shades = ("-n", 8, "--precision", "fp32"), lab["shades"]
    line = ("--samplers", "ddim", "--steps", 2, "--guidance", "1,2")
    ran = diffuse("tune", columns, shades, *few, *line, "-o", "tuned.safetensors", "--json").ok()
    assert ran.json["recommended"]["guidance"] in (1, 2)
    line = ("sample", "tuned.safetensors", "-n", 2, "--on", "level=100", "-q")
    assert diffuse(*line).code == 0
    assert manifest()["on"] == [{"level": 100}] * 2
    for options in (("held-out", *few[2:]), ("kid", *few, "--steps", 2)):
        assert diffuse("ema", columns, shades, "--metric", *options).code == 0
    line = (*few, "--steps", 2, "--timesteps", 4, "--json")
    diffuse("compare", columns, lab["unconditional"], shades, *line).ok()
