"""Images of 16 bits and with transparency from files to a model and back, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import in_process
from PIL import Image

from diffuse_cli.core.space import Space
from diffuse_cli.data import read_images
from diffuse_cli.media import ReadSettings, image
from diffuse_cli.media.image.planes import encode_png
from diffuse_cli.sampling import input_pictures
from diffuse_cli.system.events import finish

COUNT = 48


def blobs(channels: int, top: int) -> np.ndarray:
    """Soft spots, (COUNT, channels, 8, 8)."""
    draw = np.random.default_rng(8)
    y, x = np.mgrid[:8, :8]
    places = draw.uniform(2, 6, (2, COUNT, channels, 1, 1))
    spots = np.exp(-((x - places[0]) ** 2 + (y - places[1]) ** 2) / 6)
    dtype = np.uint8 if top == 255 else np.uint16
    return (top * spots * draw.uniform(0.4, 1, (COUNT, channels, 1, 1))).astype(dtype)


def trained(folder: Path, values: np.ndarray, recipe: Path, *options: Any) -> Path:
    (folder / "data").mkdir()
    for k, sample in enumerate(values):
        (folder / "data" / f"{k:03d}.png").write_bytes(encode_png(sample))
    line = ["train", folder / "data", "--config", recipe, "--steps", 6, *options]
    assert in_process([*line, "-o", folder / "m.safetensors", "-q"]) == 0
    return folder / "m.safetensors"


def drawn(path: Path, layout: str | None = None) -> np.ndarray:
    return image.read(path.read_bytes(), ReadSettings(layout=layout)).values


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A model of grey images of 16 bits."""
    return trained(tmp_path_factory.mktemp("deep"), blobs(1, 65_535), recipe)


def test_a_model_of_sixteen_bits(deep: Path, diffuse: Callable[..., Any], tmp_path: Path) -> None:
    data = deep.parent / "data"
    stored = finish(read_images(data)).stored
    assert np.array_equal(stored, blobs(1, 65_535))
    space = json.loads(diffuse("info", deep, "--json").out)["space"]
    assert (space["levels"], space["channels"]) == (65_536, 1)
    ran = diffuse("sample", deep, "-n", 3, "--steps", 2, "-o", tmp_path / "out", "-q")
    assert ran.code == 0, ran.err
    found = drawn(tmp_path / "out" / "00001.png")
    assert found.dtype == np.uint16
    assert len(np.unique(found % 257)) > 8  # not 8 bits, widened
    ran = diffuse("eval", deep, data, "-n", 3, "--steps", 2, "--timesteps", 4, "--json",
                  "--report", tmp_path / "page.html")  # fmt: skip
    assert ran.code == 0, ran.err
    values = json.loads(ran.out)
    assert 8 < values["bits_per_dim"] < 40


def test_tasks_keep_sixteen_bits(deep: Path, diffuse: Callable[..., Any], tmp_path: Path) -> None:
    first = deep.parent / "data" / "000.png"
    mask = np.zeros((1, 8, 8), np.uint16)
    mask[:, :, 4:] = 65_535
    Path("mask.png").write_bytes(encode_png(mask))
    ran = diffuse("inpaint", deep, first, "--mask", "mask.png", "--steps", 2, "-o", "in", "-q")
    assert ran.code == 0, ran.err
    written = [path for path in Path("in").glob("*.png") if path.name != "grid.png"]
    assert written
    for path in written:
        found = drawn(path)
        assert np.array_equal(found[:, :, :4], blobs(1, 65_535)[0][:, :, :4])
    ran = diffuse("vary", deep, first, "--steps", 2, "--strength", 0.1, "-o", "va", "-q")
    assert ran.code == 0, ran.err
    ran = diffuse("noise-demo", first, "--model", deep, "-o", "demo.png", "-q")
    assert ran.code == 0, ran.err


def test_levels_outside_of_the_models_are_named(tmp_path: Path) -> None:
    space = Space(channels=1, size=(8, 8), levels=65_536, limits=(0, 4095))
    loaded = SimpleNamespace(space=space, background="white", fit="crop")
    for most, said in ((4095, []), (65_535, ["levels from 9 to 65,535, which are clipped to"])):
        values = np.full((1, 8, 8), 9, np.uint16)
        values[0, 0, 0] = most
        (tmp_path / "a.png").write_bytes(encode_png(values))
        found = finish(input_pictures.read(str(tmp_path / "a.png"), loaded, None, space))
        assert len(found.notices) == len(said)
        for notice, part in zip(found.notices, said, strict=True):
            assert notice.warning
            assert part in notice.text


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A model of colored images with transparency, on teal."""
    folder = tmp_path_factory.mktemp("clear")
    return trained(folder, blobs(4, 255), recipe, "--alpha", "--background", "#008080")


def test_a_model_of_transparent_images(
    clear: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    data = clear.parent / "data"
    space = json.loads(diffuse("info", clear, "--json").out)["space"]
    assert (space["channels"], space["layout"]) == (4, "alpha:008080")
    ran = diffuse("train", "--resume", "--steps", 8, "-o", clear)
    assert ran.code == 0, ran.err
    assert "step 8" in ran.err
    ran = diffuse("sample", clear, "-n", 2, "--steps", 2, "-o", "out", "-q")
    assert ran.code == 0, ran.err
    assert Image.open("out/00000.png").mode == "RGBA"
    assert Image.open("out/grid.png").mode == "RGB"
    ran = diffuse("eval", clear, data, "-n", 3, "--steps", 2, "--timesteps", 4, "--json")
    assert ran.code == 0, ran.err
    assert "kid" in json.loads(ran.out)
    ran = diffuse("inpaint", clear, data / "000.png", "--steps", 2, "-o", "in", "-q")
    assert ran.code == 2
    assert "--mask is missing: this model generates transparency" in ran.line
    ran = diffuse("upscale", clear, data / "001.png", "--factor", 2, "--steps", 2, "-o", "up", "-q")
    assert ran.code == 0, ran.err
    assert Image.open("up/grid.png").mode == "RGB"
    ran = diffuse("info", data, "--alpha", "-o", "sheet.png")
    assert ran.code == 0, ran.err
    assert "color and transparency" in ran.out


def test_no_file_holds_an_average_of_colors_and_transparency(
    clear: Path, diffuse: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("L", (8, 8), 90).save(tmp_path / "grey.png")
    line = ("restore", clear, "--steps", 2, "-n", 1, "-q", "--degradation")
    for form in ("grey", "downsample-channels:2"):
        ran = diffuse(*line, form, "grey.png")
        assert ran.code == 2, ran.err
        assert f"{form} averages colors with transparency" in ran.line
    ran = diffuse(*line, "grey", clear.parent / "data" / "000.png", "--degrade", "-o", "re")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--channels 4", "--channels: images have 1 or 3, not 4. --alpha keeps transparency"),
        ("--channels 5", "--channels: images have 1 or 3, not 5"),
        ("--alpha --channels 3", "--channels: images with transparency have 2 or 4, not 3"),
        ("--alpha --layout pages", "--alpha is not for --layout pages"),
    ],
)
def test_channels_that_images_do_not_have_are_refused(
    diffuse: Callable[..., Any], tmp_path: Path, options: str, said: str
) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(blobs(3, 255)[0]))
    ran = diffuse("train", tmp_path, *options.split(), "--steps", 1)
    assert (ran.code, ran.line) == (2, f"diffuse: {said}\n")


def test_other_media_have_no_transparency(diffuse: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.float32))
    ran = diffuse("train", tmp_path, "--alpha", "--steps", 1)
    assert (ran.code, ran.line) == (2, "diffuse: --alpha: arrays have no transparency\n")
