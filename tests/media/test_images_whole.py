"""Images of 16 bits and with transparency from files to a model and back, as a user runs it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from diffuse_cli.core.space import Space
from diffuse_cli.data import read_images
from diffuse_cli.media import ReadSettings, image
from diffuse_cli.media.image.planes import encode_png
from diffuse_cli.sampling import input_pictures
from diffuse_cli.system.events import finish


def drawn(path: Path, layout: str | None = None) -> np.ndarray:
    return image.read(path.read_bytes(), ReadSettings(layout=layout)).values


def test_a_model_of_sixteen_bits(lab, diffuse):
    deep, data = lab["16-bits"], lab["deep"]
    stored = finish(read_images(data)).stored
    assert stored.dtype == np.uint16
    assert np.array_equal(stored[0, 0], np.asarray(Image.open(lab.sample("deep"))))
    space = diffuse("info", deep, "--json").json["space"]
    assert (space["levels"], space["channels"]) == (65_536, 1)
    assert diffuse("sample", deep, "-n", 3, "--steps", 2, "-o", "out", "-q").code == 0
    found = drawn(Path("out/00001.png"))
    assert found.dtype == np.uint16
    assert len(np.unique(found % 257)) > 8  # not 8 bits, widened
    line = ("eval", deep, data, "-n", 3, "--metrics", "likelihood", "--timesteps", 4, "--json")
    assert 8 < diffuse(*line).json["bits_per_dim"] < 40


def test_tasks_keep_sixteen_bits(lab, diffuse):
    deep, first = lab["16-bits"], lab.sample("deep")
    mask = np.zeros((1, 8, 8), np.uint16)
    mask[:, :, 4:] = 65_535
    Path("mask.png").write_bytes(encode_png(mask))
    line = ("inpaint", deep, first, "--mask", "mask.png", "-n", 2, "--steps", 2, "-q")
    assert diffuse(*line, "-o", "in").code == 0
    for k in range(2):
        assert np.array_equal(drawn(Path(f"in/{k:05d}.png"))[:, :, :4], drawn(first)[:, :, :4])


def test_levels_outside_of_the_models_are_named(tmp_path):
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


def test_a_model_of_transparent_images(lab, diffuse, tmp_path):
    data = lab["clear"]
    line = ("train", data, "--config", lab["kind-unet"], "--alpha", "--background", "#008080")
    assert diffuse(*line, "--steps", 4, "-q").code == 0
    clear = tmp_path / "model.safetensors"
    space = diffuse("info", clear, "--json").json["space"]
    assert (space["channels"], space["layout"]) == (4, "alpha:008080")
    assert "step 5" in diffuse("train", "--resume", "--steps", 5, "-o", clear).ok().err
    assert diffuse("sample", clear, "-n", 2, "--steps", 2, "-o", "out", "-q").code == 0
    assert Image.open("out/00000.png").mode == "RGBA"
    ran = diffuse("eval", clear, data, "-n", 3, "--steps", 2, "--metrics", "kid", "--json")
    assert "kid" in ran.json
    line = ("upscale", clear, lab.sample("clear"), "--factor", 2, "--steps", 2, "-o", "up", "-q")
    assert diffuse(*line).code == 0
    assert Image.open("out/grid.png").mode == Image.open("up/grid.png").mode == "RGB"
    ran = diffuse("info", data, "--alpha", "-o", "sheet.png")
    assert (ran.code, "color and transparency" in ran.out) == (0, True), ran.err


def test_colors_and_transparency_are_averaged_where_they_are_removed(lab, diffuse):
    line = ("restore", lab["alpha"], lab.sample("clear"), "--degradation", "grey", "--degrade")
    diffuse(*line, "--steps", 2, "-n", 1, "-q").ok()
