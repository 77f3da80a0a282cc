"""`sample --members`: the samples of each input under its name, and `eval` of such a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import manifest
from image_corpus import contents
from PIL import Image

from diffuse_cli.metrics import ensembles
from diffuse_cli.metrics.ensembles import EnsembleScores

QUICK = ("--steps", 2, "--precision", "fp32", "--no-grid")


@pytest.fixture
def inputs(lab) -> Path:
    """Three of the images beside those of the pairs, in their folders."""
    for name in ("dark/00", "light/01", "dark/02"):
        path = Path("inputs") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lab["beside"] / f"{name}.png", path)
    return Path("inputs")


def test_members_are_the_samples_of_n_by_the_names_of_their_inputs(diffuse, lab, inputs):
    line = ("sample", lab["pairs"], "--given", inputs, *QUICK)
    ran = diffuse(*line, "--members", 4, "--moments", "-o", "out", "--json").ok()
    found, numbered = contents("out"), diffuse(*line, "-n", 4, "-o", "numbered").ok()
    assert len(numbered.out.split()) == 12
    names = ("dark/00", "dark/02", "light/01")
    for k, name in enumerate(names):
        made = [found[f"{name}-0{j}.png"] for j in range(4)]
        assert made == [contents("numbered")[f"{k + 3 * j:05d}.png"] for j in range(4)]
        stack = np.stack([np.asarray(Image.open(f"out/{name}-0{j}.png"), float) for j in range(4)])
        for key, values in (("mean", stack.mean(0)), ("std", stack.std(0, ddof=1))):
            array = np.load(f"out/{name}-{key}.npy")
            assert array.dtype == np.float32
            assert array[0] == pytest.approx(values, abs=1e-4)
    assert manifest("out")["n"] == 4
    assert len(ran.json["arrays"]) == 6
    # Repeated, extended and packed: the same members, and moments of all of them.
    assert "is complete" in diffuse(*line, "--members", 4, "--moments", "-o", "out").err
    diffuse(*line, "--members", 6, "--moments", "-o", "out").ok()
    diffuse(*line, "--members", 6, "--moments", "-o", "anew").ok()
    assert contents("out") == contents("anew")
    assert contents("out")["dark/00-03.png"] == found["dark/00-03.png"]
    assert contents("out")["dark/00-mean.npy"] != found["dark/00-mean.npy"]
    diffuse(*line, "--members", 7, "-o", "out").ok()
    assert "dark/00-mean.npy" not in contents("out")  # it would be of 6 members
    diffuse(*line, "--members", 6, "--moments", "-o", "out.zip").ok()
    shutil.unpack_archive("out.zip", "unpacked")
    assert contents("unpacked") == contents("anew")
    diffuse(*line, "-n", 4, "-q", "-o", "out").fails(5, "other settings: --members")
    diffuse(*line, "--members", 4, "-q", "-o", "numbered").fails(5, "other settings: --members")
    diffuse(*line, "-n", 1, "-o", "out", "--overwrite").ok()
    assert {*contents("out")} == {*(f"0000{k}.png" for k in range(3)), "manifest.json"}


def test_names_that_differ_only_in_the_extension_are_refused(diffuse, lab):
    Path("inputs").mkdir()
    for suffix in ("png", "bmp"):
        Image.open(lab.sample("beside")).save(f"inputs/a.{suffix}")
    line = ("sample", lab["pairs"], "--given", "inputs", *QUICK, "--members", 2)
    diffuse(*line, "-q", "-o", "out").fails(3, "--members: a is not the name of one file")


def test_a_folder_of_members_is_scored_as_its_arrays(diffuse):
    draw, pairs = np.random.default_rng(4), []
    for k in range(20):
        truth, made = draw.normal(9, 3, (2, 6, 6)), draw.normal(9, 2, (5, 2, 6, 6))
        pairs.append((made.astype(np.float32), truth.astype(np.float32)))
        Path("data").mkdir(exist_ok=True)
        Path("members").mkdir(exist_ok=True)
        np.save(f"data/{k:02d}.npy", pairs[-1][1])
        for j in range(5 if k < 18 else 4):
            np.save(f"members/{k:02d}-{j:02d}.npy", pairs[-1][0][j])
    line = ("eval", "members", "data", "--metrics", "ensembles", "--json", "--layout", "CHW")
    ran = diffuse(*line, "--members", 5).ok()
    assert "18 of 20 in DATA have 5 members" in ran.err
    real = np.stack([truth for _, truth in pairs[:18]])
    scores = EnsembleScores.from_real(5, real)
    for k, (made, truth) in enumerate(pairs[:18]):
        scores.add(made, truth, np.delete(real, k, 0), None)
    exact = ensembles.compute(SimpleNamespace(ensembles=scores))
    for key, value in exact.items():  # of 16 other arrays, in an order of their own
        rel = 0.1 if "climatology" in key else 1e-5
        assert ran.json[key] == pytest.approx(value, rel=rel), key
    assert ran.json["details"]["ensembles"]["fields"] == 18
    diffuse(*line, "--members", 6, "-q").fails(
        3, "has 6 members in members: for example 00-00 to 00-05"
    )


def test_members_without_spread_have_values_and_a_page(diffuse):
    """Constant members, and constant real arrays that are equal to them."""
    for k in range(12):
        for folder, names in (
            ("data", [f"{k:02d}"]),
            ("members", [f"{k:02d}-0{j}" for j in (0, 1)]),
        ):
            Path(folder).mkdir(exist_ok=True)
            for name in names:
                np.save(f"{folder}/{name}.npy", np.full((1, 4, 4), 7 + k % 2, np.float32))
    line = ("eval", "members", "data", "--members", 2, "--layout", "CHW")
    ran = diffuse(*line, "--report", "page.html", "--json", plots=True).ok()
    assert ran.json["crps"] == ran.json["rmse_of_mean_standard_error"] == 0
    assert ran.json["spread_error_ratio"] == 1
    assert "Rank histogram" in Path("page.html").read_text()
