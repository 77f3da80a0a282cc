"""`sample --given` and `--then`: what the images are drawn from, and what is said of it."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import manifest, mostly_slow, pixels
from lab import write_images
from PIL import Image

from diffuse_cli.core.conditions import ConditioningArray
from diffuse_cli.models import model_file
from diffuse_cli.sampling.cascade import check_same_conditions
from diffuse_cli.sampling.conditioning import Condition
from diffuse_cli.system import UsageError

STEPS = ("--steps", 3, "--precision", "fp32", "-q")
ADAMW = ("--optimizer", "adamw")


@pytest.fixture(scope="module")
def paired(lab):
    """A model of pairs, of classes too."""
    return lab.trained(*lab.tiny, "--steps", 8, *ADAMW, "--classes", "--given", lab["images"])


@pytest.fixture(scope="module")
def upscaler(lab):
    """A model of what is four times as small."""
    return lab.trained(*lab.tiny, "--steps", 8, *ADAMW, "--given", "low-res:4")


@pytest.fixture(scope="module")
def inpainter(lab):
    """A model of what is masked."""
    masks = ("--given", "mask:random", "--given-dropout", 0)
    return lab.trained(*lab.tiny, "--steps", 8, *ADAMW, *masks)


@pytest.fixture(scope="module")
def small(lab):
    """A model of 2x2 images of classes."""
    return lab.trained(*lab.tiny, "--steps", 8, *ADAMW, "--classes", "--size", 2)


def inputs(tmp_path, count=3, side=8, name="inputs"):
    return write_images(tmp_path / name, count, side=side)


def test_n_images_are_drawn_of_each(diffuse, paired, tmp_path):
    given = inputs(tmp_path)
    ran = diffuse("sample", paired, "--given", given, "-n", 2, *STEPS, "-o", "out", "--json").ok()
    assert len(ran.json["images"]) == 6
    found = manifest("out")
    assert [one["name"] for one in found["given"]["files"]] == [
        "dark/000.png", "dark/002.png", "light/001.png",
    ]  # fmt: skip
    for one in found["given"]["files"]:
        assert one["sha256"] == hashlib.sha256((given / one["name"]).read_bytes()).hexdigest()
    assert found["guidance"] == 1
    assert diffuse("sample", paired, "--guidance", 0, "-n", 4, *STEPS, "-o", "free").code == 0
    assert "given" not in manifest("free")
    assert found["classes"] == ["dark"] * 3 + ["light"] * 3
    grid = np.asarray(Image.open("out/grid.png"))
    assert grid.shape == (3 * 66 - 2, 3 * 66 - 2)
    first = np.asarray(Image.open(given / "dark/000.png"))
    assert np.array_equal(grid[:64:8, :64:8], first)
    assert np.array_equal(grid[:64:8, 132:196:8], pixels("out", 3))


def test_an_image_is_that_of_what_is_given_for_any_number_and_batch_size(diffuse, paired, tmp_path):
    given = inputs(tmp_path)
    line = ("sample", paired, "--given", given, "--class", "light", *STEPS)
    diffuse(*line, "-n", 2, "-o", "one")
    for options in (("-n", 3), ("-n", 2, "--batch-size", 4), ("-n", 1)):
        assert diffuse(*line, *options, "-o", "two", "--overwrite").code == 0
        for k in range(3 * min(2, options[1])):
            apart = pixels("one", k) - pixels("two", k)
            assert abs(apart).max() <= 1  # rounding depends on the batch
    shutil.copy(given / "light/001.png", given / "dark/000.png")
    assert diffuse(*line, "-n", 1, "-o", "three").code == 0
    assert (pixels("one", 0) != pixels("three", 0)).any()


@pytest.mark.parametrize("kind", mostly_slow(["given", "then"], always=1))
def test_two_processes_draw_what_one_does(diffuse, pair, request, tmp_path, kind):
    if kind == "given":
        line = (request.getfixturevalue("paired"), "--given", inputs(tmp_path), "-n", 3)
    else:
        small, upscaler = map(request.getfixturevalue, ("small", "upscaler"))
        line = (small, "--then", upscaler, "-n", 5)
    options = (*line, *STEPS, "--batch-size", 1)
    assert diffuse("sample", *options, "-o", "one").code == 0
    assert pair("sample", *options, "-o", "two").code == 0
    assert manifest("one") == manifest("two")


def test_a_model_of_a_degradation_is_given_what_is_degraded_or_degrades(
    diffuse, upscaler, tmp_path
):
    whole, low = inputs(tmp_path, 2), inputs(tmp_path, 2, name="small")
    for path in whole.rglob("*.png"):
        values = np.asarray(Image.open(path)).reshape(2, 4, 2, 4).mean((1, 3)).round()
        Image.fromarray(values.astype(np.uint8)).save(low / path.relative_to(whole))
    assert diffuse("sample", upscaler, "--given", low, "-n", 1, *STEPS, "-o", "low").code == 0
    line = ("sample", upscaler, "--given", whole, "--degrade", "-n", 1, *STEPS, "-o", "whole")
    assert diffuse(*line).code == 0
    assert manifest("whole")["given"]["degraded"] == "low-res:4"
    for k in range(2):  # but for the rounding of what was saved
        assert abs(pixels("low", k) - pixels("whole", k)).max() <= 2
    ran = diffuse("sample", upscaler, "--given", whole, "-n", 1, *STEPS[:-1], "-o", "resized")
    assert "--given of 8x8: resized to 2x2" in ran.err


def test_a_mask_says_what_is_unknown(diffuse, inpainter, small, tmp_path):
    given = inputs(tmp_path, 2)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    line = ("sample", inpainter, "--given", given, "-n", 1, *STEPS)
    assert diffuse(*line, "--mask", "mask.png", "-o", "one").code == 0
    for path in given.rglob("*.png"):  # what is unknown does not matter
        values = np.asarray(Image.open(path)).copy()
        values[:, 4:] = 7
        Image.fromarray(values).save(path)
    assert diffuse(*line, "--mask", "mask.png", "-o", "two").code == 0
    for k in range(2):
        assert np.array_equal(pixels("one", k), pixels("two", k))
    # Masks are read from an eighth of white, and on black where they are transparent.
    clear = np.dstack([np.full_like(mask, 255), mask])
    for name, values in (("faint", mask // 4), ("ones", mask // 255), ("clear", clear)):
        Image.fromarray(values).save(f"{name}.png")
        assert diffuse(*line, "--mask", f"{name}.png", "-o", name).code == 0
        assert all(np.array_equal(pixels(name, k), pixels("two", k)) for k in range(2)), name
    masks = inputs(tmp_path, 2, name="masks")
    assert diffuse(*line, "--mask", masks, "-o", "each").code == 0
    (masks / "dark/000.png").unlink()
    ran = diffuse(*line, "--mask", masks, "-o", "lacking").fails(3)
    assert "dark/000.png" in ran.err
    assert diffuse(*line, "--degrade", "-o", "drawn").code == 0
    drawn = sorted(Path().iterdir())
    for options, code in (
        ("--guidance 0", "option_unsuited"), ("--given inputs", "missing_argument"),
        ("--given inputs --mask inputs/dark", "data_mismatch"),
        ("--given inputs --mask masks -o masks", "output_is_input"),
    ):  # fmt: skip
        ran = diffuse(*line[:2], *options.split(), *STEPS, "--json")
        assert ran.json["error"]["code"] == code, options
    diffuse("sample", small, "--then", inpainter, *STEPS).fails(2, "the model needs masks")
    assert sorted(Path().iterdir()) == drawn


def test_a_second_model_draws_from_what_the_first_drew(diffuse, small, upscaler):
    line = ("-n", 4, "--seed", 3, *STEPS)
    assert diffuse("sample", small, *line, "--then", upscaler, "-o", "both").code == 0
    assert diffuse("sample", small, *line, "-o", "first").code == 0
    found = manifest("both")
    assert found["first"]["model"] == manifest("first")["model"]
    assert found["model"] != found["first"]["model"]
    grid = np.asarray(Image.open("both/grid.png"))
    for k in range(4):
        assert pixels("both", k).shape == (8, 8)
        low = pixels("first", k).repeat(4, 0).repeat(4, 1)
        row, column = divmod(2 * k, round((grid.shape[1] + 2) / 66))
        there = grid[row * 66 : row * 66 + 64 : 8, column * 66 : column * 66 + 64 : 8]
        assert abs(there - low).max() <= 1


def test_a_second_model_is_told_the_class_of_the_first(diffuse, lab, small, upscaler):
    large = lab.trained(*lab.tiny, "--steps", 1, "--classes", "--given", "low-res:4")
    assert diffuse("sample", small, "--then", large, "-n", 4, *STEPS).code == 0
    assert manifest("samples")["classes"] == ["dark", "light", "dark", "light"]
    line = ("sample", small, "-n", 2, *STEPS, "--then", upscaler, "-o", "b")
    levels = ("--guidance", 0, "--guidance-interval", "0.1,9")
    assert diffuse(*line, "--class", "light", *levels).code == 0
    found = manifest("b")
    assert found["first"]["classes"] == ["light", "light"]
    assert (found["first"]["guidance"], found["guidance"]) == (0, 1)
    assert found["first"]["guidance_interval"] == [0.1, 9]
    assert found["guidance_interval"] is None
    assert diffuse(*line, "--class", "light", *levels).code == 0
    for others in (("--class", "dark", *levels), ("--class", "light", "--guidance", 3)):
        diffuse(*line, *others).fails(5, "already holds samples with other settings")


def test_a_second_model_with_other_classes_needs_their_names(diffuse, lab, small, images, tmp_path):
    """Without names, image k would have class k of both models."""
    shutil.copytree(images, tmp_path / "more")
    shutil.copytree(images / "dark", tmp_path / "more" / "bright")
    line = ("train", tmp_path / "more", "--config", lab["tiny"], "--steps", 1, "--classes")
    assert diffuse(*line, "--given", "low-res:4", "-o", "more.safetensors").code == 0
    line = ("sample", small, "--then", "more.safetensors", "-n", 2, *STEPS)
    diffuse(*line, "-q").fails(2, "dark for MODEL is bright for --then more.safetensors")
    diffuse(*line, "--class", "dark", "--class", "light").ok()
    assert manifest("samples")["classes"] == ["dark", "light"]


def test_a_second_model_has_the_columns_of_the_first_or_is_refused():
    """Classes and columns of the first, (40, 40, 70, 70), do not meet those of a model without."""

    def stage(classes, ages):
        condition = Condition(classes, rows=tuple((age,) for age in ages))

        def describe(images):
            found = {"on": [{"age": condition.row(k)[0]} for k in images]}
            return found | ({"classes": [condition.label(k) for k in images]} if classes else {})

        settings = SimpleNamespace(condition=condition)
        return SimpleNamespace(settings=settings, describe_conditions=describe)

    both, plain = stage((0, 1, 0, 1), (40.0, 40.0, 70.0, 70.0)), stage((), (40.0, 70.0))
    for stages in ((both, plain), (plain, both)):
        with pytest.raises(UsageError, match="age"):
            check_same_conditions(stages, "then")
    for same in (both, plain):
        check_same_conditions((same, same), "then")


def test_a_model_file_with_another_given_is_refused(paired, diffuse):
    data = paired.read_bytes()
    for before, *others in (
        ('"what":"pairs"', '"what":"pears"', '"what":"blur:"', '"what":"low-r"'),
        ('"channels":1,"dropout"', '"channels":9,"dropout"'),
        ('"noise":0.0', '"noise":-.1', '"noise":nul'),
    ):
        own, *others = (text.replace('"', '\\"').encode() for text in (before, *others))
        assert data.count(own) == 1
        for other in others:
            Path("bad.safetensors").write_bytes(data.replace(own, other))
            assert diffuse("info", "bad.safetensors", "-q").code == 4, other
    given = ConditioningArray(channels=1, dropout=0.1)
    assert model_file.load(paired).blueprint.conditions.given == given
