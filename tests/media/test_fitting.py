"""--fit: where a picture of another shape comes to lie, and that it does so everywhere alike."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from image_corpus import encoded, fill, noise
from PIL import Image

from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.data import read_images
from diffuse_cli.data.summary import describe_fit
from diffuse_cli.evaluation.image_sets import read_sides
from diffuse_cli.media import FITS
from diffuse_cli.media.image.planes import fit_image
from diffuse_cli.models import model_file
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.system.events import Notice, finish

NAVY = (0, 0, 128)


def read(folder, **options):
    return finish(read_images(folder, **options)).stored


# -- the geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FITS))
@pytest.mark.parametrize(
    ("own", "wanted"), [((16, 9), (4, 4)), ((5, 7, 9), (3, 3, 2)), ((8,), (3,))]
)
def test_parts_lie_within_and_one_of_them_is_whole(name, own, wanted):
    taken, filled = FITS[name](own, wanted)
    assert all(0 < a <= b + 1e-9 for a, b in zip((*taken, *filled), (*own, *wanted), strict=True))
    scales = [b / a for a, b in zip(taken, filled, strict=True)]
    assert (name == "stretch") or scales == pytest.approx([scales[0]] * len(scales))
    assert taken == pytest.approx(own) or filled == pytest.approx(wanted)


@pytest.mark.parametrize("name", FITS)
def test_what_has_the_shape_is_only_scaled(name):
    assert FITS[name]((20, 10), (4, 2)) == ((20, 10), (4, 2))
    square = noise(1, (20, 20))
    assert fit_image(square, (8, 8), name).tobytes() == fit_image(square, (8, 8)).tobytes()
    assert fit_image(square, (20, 20), name) is square


@pytest.mark.parametrize(
    ("sizes", "size", "fit", "said"),
    [
        ([(1920, 1080), (64, 64)], (64, 64), "crop", ", cropped at the center by up to 44 %"),
        ([(1920, 1080), (64, 64)], (64, 64), "pad", ", up to 44 % of it padding"),
        ([(1920, 1080), (64, 64)], (64, 64), "stretch", ", stretched by up to 78 %"),
        ([(1920, 1080)], (36, 64), "pad", ""),
        ([(333, 333), (1000, 1000)], (48, 48), "stretch", ""),
        ([(100, 50, 50)], (10, 10, 10), "crop", ", cropped at the center by up to 50 %"),
        ([(44,)], (16,), "crop", ""),
    ],
)
def test_what_a_fit_does_is_said(sizes, size, fit, said):
    assert describe_fit(sizes, size, fit, "image") == said


def test_pad_keeps_the_whole_picture_at_the_center():
    wide = noise(2, (32, 18), "RGB")
    made = np.asarray(fit_image(wide, (32, 32), "pad", NAVY))
    assert made[7:25].tolist() == np.asarray(wide).tolist()
    assert (made[:7] == NAVY).all()
    assert (made[25:] == NAVY).all()
    high = np.asarray(fit_image(wide.transpose(Image.Transpose.TRANSPOSE), (32, 32), "pad", NAVY))
    assert high.tolist() == made.transpose(1, 0, 2).tolist()
    thin = np.asarray(fit_image(Image.new("L", (3000, 1), 9), (8, 8), "pad"))
    assert (thin == 9).sum() == 8


def test_stretch_shows_all_of_it_and_nothing_else():
    halves = Image.new("L", (32, 8), 0)
    halves.paste(255, (16, 0, 32, 8))
    made = np.asarray(fit_image(halves, (8, 8), "stretch"))
    assert (made[:, :3] < 10).all()
    assert (made[:, 5:] > 245).all()


# -- sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_every_image_of_a_set_is_fitted(tmp_path, fit, cached, order):
    """Also those that were kept at their own size until another size came."""
    pictures = {order[0]: noise(3, (30, 20), "RGB"), order[1]: noise(4, (90, 100), "RGB")}
    files = {f"{k}.png": encoded(picture) for k, picture in pictures.items()}
    folder = fill(tmp_path / "in", files)
    options = {"cache": tmp_path / "cache"} if cached else {}
    stored = read(folder, fit=fit, background="navy", **options)
    for k, name in enumerate("ab"):
        expected = np.asarray(fit_image(pictures[name], (64, 64), fit, NAVY))
        assert stored[k].transpose(1, 2, 0).tolist() == expected.tolist()
    (text,) = [e.text for e in read_images(folder, fit=fit) if isinstance(e, Notice)]
    assert "2 sizes from" in text
    assert "--size" in text


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_grey_is_padded_in_the_color_that_was_asked_for(tmp_path, names):
    pictures = (noise(5, (30, 20)), noise(6, (9, 9)))
    files = {f"{name}.png": encoded(own) for name, own in zip(names, pictures, strict=True)}
    folder, row = fill(tmp_path, files), "ab".index(names[0])
    (text,) = [e.text for e in read_images(folder, fit="pad") if isinstance(e, Notice)]
    assert "% of it padding; pass --size" in text
    wide = read(folder, fit="pad", background="navy")[row]
    assert wide[:, 0, 0].tolist() == list(NAVY)
    assert read(folder, fit="pad", background="#404040").shape[1] == 1
    luma = read(folder, fit="pad", background="navy", channels=1)[row]
    assert luma[0, 0, 0] == Image.new("RGB", (1, 1), "navy").convert("L").getpixel((0, 0))


def test_a_fit_changes_neither_fingerprint_nor_held_out_part(tmp_path):
    data = {f"{k:02d}.png": encoded(noise(k, (20, 12))) for k in range(60)}
    sets = [finish(read_images(fill(tmp_path, data), fit=fit, size=(8, 8))) for fit in FITS]
    assert len({images.fingerprint for images in sets}) == 1
    assert len({images.held_out.tobytes() for images in sets}) == 1
    assert len({images.stored.tobytes() for images in sets}) == len(FITS)


# -- a model --------------------------------------------------------------------------------------


@pytest.fixture
def wide(tmp_path):
    return fill(tmp_path / "wide", {f"{k:02d}.png": encoded(noise(k, (16, 9))) for k in range(50)})


def test_a_model_is_measured_as_it_was_trained(diffuse, recipe, wide):
    line = ("train", wide, "--config", recipe, "--size", 8, "--fit", "pad", "--background", "black")
    assert "images at 8x8, up to 44 % of it padding; batch" in diffuse(*line, "--steps", 2).ok().err
    model = model_file.load("model.safetensors")
    assert model.data["fit"] == "pad"
    assert "fit=pad" in diffuse("info", "model.safetensors").out
    before = {name: value for name, value in model.data.items() if name != "fit"}
    for data, option, fit in (
        (model.data, None, "pad"),
        (model.data, "stretch", "stretch"),
        (before, None, "crop"),  # of an earlier version, which cropped
    ):
        config = EvalConfig(subject="model.safetensors", data=str(wide), fit=option)
        expected = read(wide, size=(8, 8), fit=fit, background="black")
        changed = dataclasses.replace(model, data=data)
        sides = finish(read_sides(config, LoadedModel(changed, None, "", "fp32")))  # no network
        real, every = ({own.tobytes() for own in rows} for rows in (sides.real.samples, expected))
        assert (sides.part, real < every) == ("held-out", True)
    line = ("train", wide, "--init", "model.safetensors", "-o", "b.safetensors", "--steps", 1)
    assert diffuse(*line, "-q").code == 0
    assert model_file.load("b.safetensors").data["fit"] == "pad"


def test_a_resume_keeps_the_fit(diffuse, recipe, wide):
    line = ("train", wide, "--config", recipe, "--size", 8, "--steps", 4, "-q", "--fit")
    for fit in ("crop", "stretch"):
        assert diffuse(*line, fit, "-o", f"{fit}.safetensors").code == 0
    diffuse(*line, "stretch", "--stop-at", 2)
    refused = diffuse("train", wide, "--resume", "--fit", "pad", "-q")
    refused.fails(2, "--fit pad differs from the run's stretch")
    assert diffuse("train", wide, "--resume", "-q").code == 0
    made, crop, stretch = (
        Path(f"{name}.safetensors").read_bytes() for name in ("model", "crop", "stretch")
    )
    assert made == stretch != crop


def test_a_fit_that_nobody_knows_is_no_model_file(diffuse, model):
    made = model_file.load(model)
    for fit in ("squeeze", ["crop"], None):
        changed = dataclasses.replace(made, data={**made.data, "fit": fit})
        model_file.save(Path("m.safetensors"), changed)
        diffuse("info", "m.safetensors", "-q").fails(4)
