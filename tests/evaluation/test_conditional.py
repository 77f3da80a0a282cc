"""`eval` and its kin with models that are given something."""

import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse_cli.commands.ema import ema_lengths
from diffuse_cli.data import read_images
from diffuse_cli.evaluation import input_builders
from diffuse_cli.system.events import finish

SMALL = ("-n", 12, "--steps", 2, "--timesteps", 4, "--precision", "fp32")


@pytest.fixture(scope="module")
def paired(lab):
    """A model of each image itself."""
    options = ("--steps", 50, "--optimizer", "adamw", "--given", lab["images"], "--ema-lengths", 4)
    return lab.trained(*lab.tiny, *options)


@pytest.fixture(scope="module")
def upscaler(lab):
    """A model, hardly trained, of what is four times as small, with classes."""
    return lab.trained(*lab.tiny, "--steps", 1, "--classes", "--given", "low-res:4")


def test_pairs_are_told_to_the_bound_and_to_what_is_drawn(diffuse, paired, images, model):
    told = diffuse("eval", paired, images, "--given", images, *SMALL, "--json")
    alone = diffuse("eval", model, images, *SMALL, "--json")
    assert told.code == alone.code == 0, told.err
    assert told.json["bits_per_dim"] < alone.json["bits_per_dim"] - 0.5
    assert "conditioned on the real images: " in told.err
    assert told.json["settings"]["given"] == "pairs"
    assert set(told.json["fingerprints"]) == {"data", "given"}
    assert told.json["part"] == "held-out"
    assert told.json["psnr"] < told.json["psnr_of_given"] == 100  # each image is given itself
    assert told.json["psnr_of_nearest"] < 100
    assert told.json["feature_distance_of_given"] < 1e-4 < told.json["feature_distance"]
    assert "inconsistency" not in told.json
    assert "psnr" not in alone.json


def test_a_degradation_is_made_of_the_real_images(diffuse, upscaler, images, pair):
    line = ("eval", upscaler, images, *SMALL, "--batch-size", 4, "--json")
    one = diffuse(*line).ok()
    assert one.json["settings"]["given"] == "low-res:4"
    assert set(one.json["classes"]) == {"dark", "light"}
    assert one.json["inconsistency_of_real"] == 0 < one.json["inconsistency"]
    assert {"psnr", "ssim_of_given", "psnr_of_nearest", "diversity_standard_error"} <= set(one.json)
    assert one.json["feature_distance"] > 0
    assert one.json["feature_distance_of_nearest"] > 0
    two = pair(*line).ok()
    for name in ("bits_per_dim", "kid", "psnr", "feature_distance_of_given"):
        assert two.json[name] == one.json[name]
    few = diffuse(*line, "-n", 6)
    assert few.json["diversity"] == pytest.approx(one.json["diversity"], rel=0.05)


def test_the_report_shows_what_was_given_what_was_drawn_and_the_truth(diffuse, upscaler, images):
    ran = diffuse("eval", upscaler, images, *SMALL, "--report", "page.html", "--json").ok()
    page = Path("page.html").read_text()
    section = page.partition('<table class="answers">')[2].partition("</table>")[0]
    names = ["condition", "generated", "generated again", "real", "nearest in training"]
    assert re.findall(r'<th scope="col">([^<]*)</th>', section) == names
    shown = re.findall(r'src="data:image/png;base64,([^"]*)" alt="([^"]*)"', section)
    assert [said for _, said in shown[:5]] == [f"{name}, of image 0" for name in names]
    assert len(shown) == 5 * ran.json["n"]["real"]
    cells = [Image.open(BytesIO(b64decode(data))).convert("L") for data, _ in shown]
    truth = {Image.open(path).convert("L").tobytes() for path in images.rglob("*.png")}
    for given, *_, real, near in zip(*[iter(cells)] * 5, strict=True):
        assert real.tobytes() in truth
        assert near.tobytes() in truth - {real.tobytes()}
        small = np.asarray(real, float).reshape(2, 4, 2, 4).mean((1, 3))
        assert np.abs(np.asarray(given)[::4, ::4] - small).max() <= 1


def test_only_images_with_a_pair_are_measured(diffuse, paired, images, tmp_path):
    """Here all that are held out, then the half of them."""
    found, some = finish(read_images(str(images))), tmp_path / "some"
    for k in np.flatnonzero(found.held_out):
        (some / found.names[k]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / found.names[k], some / found.names[k])
    line = ("eval", paired, images, "--given", some, *SMALL, "--json")
    ran = diffuse(*line, "--metrics", "likelihood,overfitting,memorization").ok()
    assert (ran.json["n"]["real"], ran.json["part"]) == (6, "held-out")
    assert "memorized_pixels" not in ran.json
    assert "--metrics memorization needs the model's training data" in ran.err
    shutil.rmtree(some / "dark")
    ran = diffuse(*line).ok()
    assert "without a pair, left out" in ran.err
    assert ran.json["n"]["real"] == 3


def test_tune_ema_and_compare_tell_what_is_given(
    diffuse, paired, upscaler, images, model, monkeypatch
):
    monkeypatch.setattr(ema_lengths, "LENGTHS", (0.08,))
    few = ("-n", 8, "--precision", "fp32")
    line = ("--samplers", "ddim", "--steps", 2, "--guidance", "1,2")
    ran = diffuse("tune", upscaler, images, *few, *line, "--json").ok()
    assert ran.json["recommended"]["guidance"] in (1, 2)
    line = ("--given", images, "--metric", "held-out", "--precision", "fp32", "--json")
    diffuse("ema", paired, images, *line).ok()
    line = ("--given", images, *few, "--steps", 2, "--timesteps", 4, "--json")
    diffuse("compare", paired, model, images, *line).ok()


def test_ensembles_do_not_depend_on_processes_or_memory(
    diffuse, upscaler, images, pair, monkeypatch
):
    few = ("-n", 6, "--steps", 2, "--precision", "fp32", "--members", 3, "--json")
    line = ("eval", upscaler, images, *few, "--metrics", "ensembles")
    one = diffuse(*line).ok()
    described = one.json["details"]["ensembles"]
    assert (described["fields"], described["members"]) == (6, 3)
    assert one.json["crps"] < one.json["mae_of_mean"]
    assert one.json["crps_of_given"] > 0
    assert pair(*line).ok().json["details"] == one.json["details"]
    monkeypatch.setattr(input_builders, "MOST_VALUES", 1)
    again = diffuse(*line).ok().json["details"]["ensembles"]
    assert again["channels"][0] == pytest.approx(described["channels"][0], rel=1e-3)
    ran = diffuse("compare", upscaler, upscaler, images, *few).ok()
    gaps = ran.json["evaluation"]["differences"]
    assert gaps["crps"] == {"difference": 0, "standard_error": 0, "paired": True, "better": None}
