"""`diffuse eval`: what it measures, on which images, and that it says so."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
from conftest import write_images
from PIL import Image

QUICK = ("--steps", 4, "--precision", "fp32")
SUBJECT = ("subject", "data", "n", "part", "features", "settings", "seconds")


@pytest.fixture
def measure(diffuse, model):
    return lambda data, *options: diffuse("eval", model, data, *QUICK, *options)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Images of the same kind that the model was not trained on."""
    return write_images(tmp_path_factory.mktemp("other") / "images", 14, seed=9)


def test_the_json_says_everything_one_needs_to_compare(measure, images, model):
    found = measure(images, "-n", 6, "--timesteps", 10, "--json").json
    assert found["n"] == {"real": 6, "generated": 6}
    assert found["features"]["name"].startswith("efficientnet-lite0")
    assert len(found["features"]["weights_sha256"]) == 64
    assert found["bits_per_dim_standard_error"] > 0
    assert found["kid_standard_error"] > 0
    assert found["frechet_distance"] > 0
    assert math.isfinite(found["kid"])
    assert found["settings"]["steps"] == 4
    assert found["settings"]["timesteps"] == 10
    assert found["settings"]["precision"] == "fp32"
    assert found["settings"]["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_bits_per_dimension_are_the_sum_of_three_parts(measure, images):
    found = measure(images, "-n", 4, "--timesteps", 10, "--json").json
    parts = [found[f"bits_{name}"] for name in ("prior", "middle", "decoder")]
    assert found["bits_per_dim"] == pytest.approx(sum(parts), rel=1e-6)
    assert min(parts) >= 0
    assert 1 < found["bits_per_dim"] < 20


def test_the_held_out_part_is_used_where_data_is_the_training_data(measure, images):
    ran = measure(images, "-n", 4, "--timesteps", 2, "--json")
    assert ran.json["part"] == "held-out"
    assert "never trained on, 6 of 60" in ran.err


def test_all_of_other_data_is_used(measure, other):
    ran = measure(other, "-n", 4, "--timesteps", 2, "--json")
    assert ran.json["part"] == "all"
    assert "all, 14 of 14" in ran.err


def test_a_copy_of_the_training_data_in_another_place_is_still_known(measure, images, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for k, path in enumerate(sorted(images.rglob("*.png"), reverse=True)):
        Image.open(path).save(copy / f"{k}.bmp")
    assert measure(copy, "-n", 4, "--timesteps", 2, "--json").json["part"] == "held-out"


def test_fewer_real_images_than_n_are_all_used_and_both_counts_printed(measure, images):
    ran = measure(images, "-n", 9, "--timesteps", 2)
    assert "n = 9 generated against 6 real (held-out images)" in ran.out
    assert "efficientnet-lite0" in ran.out
    assert "FID" not in ran.out
    assert "±" in ran.out


def test_the_same_command_gives_the_same_numbers(measure, images):
    one, two = (measure(images, "-n", 4, "--timesteps", 5, "--json").json for _ in range(2))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_another_seed_gives_other_numbers(measure, images):
    one, two = (
        measure(images, "-n", 4, "--timesteps", 5, "--seed", seed, "--json").json for seed in (0, 1)
    )
    assert one["bits_per_dim"] != two["bits_per_dim"]
    assert one["kid"] != two["kid"]


def test_the_batch_size_does_not_change_the_numbers(measure, images):
    one, two = (
        measure(images, "-n", 5, "--timesteps", 5, "--batch-size", size, "--json").json
        for size in (64, 2)
    )
    assert one["bits_per_dim"] == pytest.approx(two["bits_per_dim"], rel=1e-4)
    assert one["kid"] == pytest.approx(two["kid"], rel=0.05, abs=0.01)


def test_a_few_timesteps_estimate_the_sum_over_all(measure, other):
    every = measure(other, "-n", 14, "--timesteps", "all", "--json").json
    few = measure(other, "-n", 14, "--timesteps", 20, "--json").json
    for name in ("bits_prior", "bits_decoder"):
        assert few[name] == pytest.approx(every[name], rel=0.3)
    error = math.hypot(few["bits_per_dim_standard_error"], every["bits_per_dim_standard_error"])
    assert abs(few["bits_per_dim"] - every["bits_per_dim"]) < 5 * error


def test_a_trained_model_is_measured_better_than_one_that_is_not(measure, train, diffuse, other):
    train("--steps", 1, "--lr", 0)
    line = ("-n", 14, "--timesteps", 20, "--json")
    start = diffuse("eval", "model.safetensors", other, *QUICK, *line).json
    found = measure(other, *line).json
    assert found["bits_per_dim"] < start["bits_per_dim"] - 0.5
    assert found["kid"] < start["kid"]


def test_raw_weights_are_measured_too(measure, other):
    line = ("-n", 4, "--timesteps", 5, "--json")
    raw, ema = (measure(other, *line, "--weights", w).json for w in ("raw", "ema"))
    assert raw["bits_per_dim"] != ema["bits_per_dim"]


# -- two folders ----------------------------------------------------------------------------------


def test_two_folders_are_compared(diffuse, images, other):
    found = diffuse("eval", other, images, "-n", 20, "--json").json
    assert found["n"] == {"real": 20, "generated": 14}
    assert found["part"] == "all"
    assert found["settings"] == {}
    assert "bits_per_dim" not in found
    assert {"kid", "frechet_distance"} <= {*found}


def test_a_folder_against_itself_has_no_distance(diffuse, other):
    found = diffuse("eval", other, other, "-n", 14, "--json").json
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert found["kid"] < 0.05


def test_a_folder_of_samples_counts_its_images_without_the_grid(diffuse, model, other):
    diffuse("sample", model, "-n", 5, *QUICK, "--gif")
    assert len(list(Path("samples").glob("*.png"))) == 6
    found = diffuse("eval", "samples", other, "--json").json
    assert found["n"] == {"real": 14, "generated": 5}


def test_samples_in_a_folder_measure_as_the_model_does(diffuse, measure, model, other):
    diffuse("sample", model, "-n", 8, *QUICK)
    theirs = diffuse("eval", "samples", other, "-n", 8, "--json").json
    ours = measure(other, "-n", 8, "--timesteps", 2, "--json").json
    assert theirs["kid"] == pytest.approx(ours["kid"], abs=1e-3)
    assert theirs["frechet_distance"] == pytest.approx(ours["frechet_distance"], rel=1e-2)


def test_one_image_is_too_few_to_compare(diffuse, model, tmp_path):
    ran = diffuse("eval", model, write_images(tmp_path / "one", 1), "-n", 2, *QUICK, "-q")
    assert ran.code in (2, 3)
    assert "two images" in ran.line
