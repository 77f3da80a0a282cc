"""noise-demo of a model: both ways, what is expected on them, and the nearest images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pixels
from edited_models import altered
from lab import Lab
from PIL import Image

from diffuse_cli.commands.noise_demo import reverse_process
from diffuse_cli.models import model_file
from diffuse_cli.system.rng import image_noise


@pytest.fixture
def picture(images: Path) -> Path:
    """One of the images that the models were trained on."""
    return sorted(images.rglob("*.png"))[0]


@pytest.fixture
def journey(monkeypatch: pytest.MonkeyPatch) -> list[reverse_process.Trajectories]:
    """The journeys that are drawn, without drawing them."""
    seen: list[reverse_process.Trajectories] = []
    blank = Image.new("RGB", (1, 1))
    draw = lambda journey, steps: seen.append(journey) or blank  # noqa: E731
    monkeypatch.setattr(reverse_process.Trajectories, "draw", draw)
    return seen


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a.astype(float) - b).mean()))


def check_end(diffuse, model: Path, found: reverse_process.Trajectories, *told) -> None:
    """Check that the reverse way ends at what `sample` draws with as many steps of `ddpm`."""
    line = ("-n", 1, "--sampler", "ddpm", "--steps", len(found.timesteps), "--seed", 3)
    line += ("--spacing", "linspace", "--precision", "fp32", "-o", "drawn")
    diffuse("sample", model, *told, *line).ok()
    assert np.abs(found.reverse.x0[0].astype(int) - pixels("drawn")).max() <= 1


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journeys of 12 times: nothing here depends on how many there are."""
    monkeypatch.setattr(reverse_process, "STEPS", 12)


def test_both_ways_are_the_models(diffuse, model, picture, journey):
    """Forward and its estimate by hand; the reverse by `sample`."""
    assert diffuse("noise-demo", picture, "--model", model, "--seed", 3).code == 0
    (found,) = journey
    loaded = model_file.load(model)
    denoiser = loaded.blueprint.denoiser(loaded.network("ema").eval())
    process, space = denoiser.process, loaded.blueprint.space
    x0 = space.to_model(torch.tensor(np.asarray(Image.open(picture).convert("L"))))[None, None]
    noise = image_noise(3, [0], -1, space.shape, torch.device("cpu"))
    assert found.timesteps[0] == 0
    assert found.timesteps[-1] == process.num_timesteps - 1
    for t in found.timesteps[:: len(found.timesteps) // 4]:
        x_t = process.diffuse(x0, t, noise)
        assert np.array_equal(found.forward.x[t], space.to_stored(x_t)[0].numpy())
        with torch.no_grad():
            expected = denoiser(x_t, t).x0.clamp(-1, 1)
        off = found.forward.x0[t].astype(int) - space.to_stored(expected)[0].numpy().astype(int)
        assert np.abs(off).max() <= 1
    last = found.timesteps[-1]
    assert np.array_equal(found.reverse.x[last], space.to_stored(noise)[0].numpy())
    assert list(found.reverse.x) == list(found.reverse.x0) == found.timesteps
    check_end(diffuse, model, found)


def test_the_nearest_image_of_data_is_found(diffuse, model, images, picture, journey):
    diffuse("noise-demo", picture, "--model", model, "--data", images, "--json").ok()
    (found,) = journey
    real = [np.asarray(Image.open(p).convert("L"))[None] for p in sorted(images.rglob("*.png"))]
    for way in (found.forward, found.reverse):
        for t in found.timesteps[::3]:
            least = min(distance(way.x0[t], image) for image in real)
            assert way.distances[t] == pytest.approx(least)
            assert distance(way.nearest[t], way.x0[t]) == pytest.approx(least)
    assert found.forward.distances[0] <= distance(found.forward.x0[0], found.image)


def test_data_that_cannot_be_read_are_refused_before_the_model_computes(
    diffuse, model, picture, instead_of_networks
):
    instead_of_networks()
    diffuse("noise-demo", picture, "--model", model, "--data", "nowhere", "-q").fails(3, "nowhere")


def test_a_page_shows_rows_for_the_model_and_writes_the_animation(
    diffuse, model, given, picture, images
):
    """More of them for the nearest image, and for what is given."""
    line = ("noise-demo", picture, "--steps", 2, "--model")
    plain = diffuse(*line, model, "-o", "a.png", "--gif", "--json").ok()
    assert plain.json["pictures"] == ["a.png", "a.gif"]
    assert plain.json["model"] == str(model)
    assert diffuse(*line, model, "--data", images, "-o", "b.png").code == 0
    assert diffuse(*line, given["UP"], "-o", "c.png", "--gif").code == 0
    for more in ("b.png", "c.png"):
        assert Image.open(more).height > Image.open("a.png").height
    for name in ("a.gif", "c.gif"):
        with Image.open(name) as moving:
            assert moving.n_frames >= 8


def test_a_class_is_told(diffuse, conditional, picture, journey):
    for label in (["--class", "dark"], ["--class", "light"], []):
        line = ("noise-demo", picture, "--model", conditional, *label, "--steps", 2)
        assert diffuse(*line, "--overwrite").code == 0
    dark, light, none = (found.forward.x0[found.timesteps[-1]].mean() for found in journey)
    assert dark < light
    assert len({dark, light, none}) == 3


@pytest.fixture(scope="module")
def given(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that are given a small image, a masked one, and one beside it, of equal weights."""
    line = (*lab.tiny, "--steps", 4, "--optimizer", "adamw", "--given", "low-res:2")
    models = {"UP": lab.trained(*line)}
    for name, what in (("PAINT", "mask:random"), ("PAIRS", "pairs")):
        path = tmp_path_factory.mktemp("given") / f"{name}.safetensors"
        models[name] = altered(models["UP"], path, given={"what": what})
    return models


@pytest.mark.parametrize("name", ["UP", "PAINT", "PAIRS"])
def test_the_model_is_told_what_it_is_given(diffuse, given, picture, images, journey, name):
    """The reverse way ends at what `sample` draws of the same, which is shown too."""
    other = sorted(images.rglob("*.png"))[-1]
    asked = ("--given", other) if name == "PAIRS" else ()
    line = ("noise-demo", picture, "--model", given[name], "--seed", 3, *asked, "--json")
    diffuse(*line).ok()
    (found,) = journey
    told = ("--given", other) if name == "PAIRS" else ("--given", picture, "--degrade")
    check_end(diffuse, given[name], found, *told)
    shown = np.asarray(Image.open("drawn/grid.png"))[:64:8, :64:8]
    assert np.array_equal(found.condition.picture[0], shown)
    kinds = {"UP": "low-res:2", "PAINT": "mask:random", "PAIRS": "pairs"}
    assert found.condition.what == kinds[name]

    loaded = model_file.load(given[name])
    denoiser = loaded.blueprint.denoiser(loaded.network("ema").eval())
    t = found.timesteps[-1]
    x_t = loaded.blueprint.space.to_model(torch.tensor(np.array(found.image)))[None]
    x_t = denoiser.process.diffuse(x_t, t, image_noise(3, [0], -1, (1, 8, 8), torch.device("cpu")))
    with torch.no_grad():
        expected = denoiser(x_t, t, given=found.condition.given).x0.clamp(-1, 1)
    wanted = loaded.blueprint.space.to_stored(expected)[0].numpy().astype(int)
    assert np.abs(found.forward.x0[t] - wanted).max() <= 1


def test_an_image_is_laid_on_the_models_background(diffuse, lab, journey):
    model = lab.trained(*lab.tiny, "--steps", 1, "--background", "black")
    Image.new("LA", (8, 8), (255, 0)).save("clear.png")
    for more in ([], ["--background", "white", "--overwrite"]):
        assert diffuse("noise-demo", "clear.png", "--model", model, *more).code == 0
    assert [found.image.max() for found in journey] == [0, 255]


@pytest.mark.parametrize("size", [(16,), (4, 8, 6)])
def test_samples_of_any_dimensions_are_told(diffuse, recipe, journey, size):
    Path("data").mkdir()
    for k, values in enumerate(np.random.default_rng(0).normal(size=(12, *size))):
        np.save(f"data/{k}.npy", values.astype(np.float32))
    line = ("train", "data", "--config", recipe, "--steps", 2, "--given", "low-res:2", "-q")
    assert diffuse(*line).code == 0
    diffuse("noise-demo", "data/3.npy", "--model", "model.safetensors").ok()
    (found,) = journey
    assert (found.condition.picture.dtype, found.condition.picture.ndim) == (np.uint8, 3)


def test_a_model_that_knows_no_image_without_a_class_asks_for_one(diffuse, conditional, picture):
    altered(conditional, Path("m.safetensors"), training={"label_dropout": 0.0})
    assert "--class is missing" in diffuse("noise-demo", picture, "--model", "m.safetensors").line
