"""Images of 16 bits: every kind of file exactly, scaled, and in sets with others."""

import io
import zlib
from pathlib import Path
from unittest.mock import Mock

import icc_profiles
import numpy as np
import pytest
from conftest import pixels
from image_corpus import decode
from odd_files import grey
from odd_files import tiff as made
from PIL import Image, ImageOps

from diffuse_cli.core.space import Space
from diffuse_cli.data import read_images
from diffuse_cli.media import ReadSettings, image
from diffuse_cli.media.image.planes import (
    SIGNATURE,
    chunk,
    encode_png,
    fit_planes,
    rescale_levels,
    to_pixels,
)
from diffuse_cli.metrics import paired
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.models.model_file import load
from diffuse_cli.system.events import Notice, finish

DRAW = np.random.default_rng(5)


def levels(*shape: int) -> np.ndarray:
    return DRAW.integers(0, 65_536, shape).astype(np.uint16)


def tiff(values: np.ndarray, mode: str = "I;16") -> bytes:
    file = io.BytesIO()
    order = ">u2" if mode == "I;16B" else "<u2"
    height, width = values.shape
    Image.frombytes(mode, (width, height), values.astype(order).tobytes()).save(file, "TIFF")
    return file.getvalue()


def read(data, **asked):
    return image.read(data, ReadSettings(**asked)).values


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(channels):
    values = levels(channels, 7, 5)
    space = image.space(values[None])
    assert space == Space(channels=channels, size=(7, 5), levels=65_536)
    image.check(space)
    found = read(image.encode(values, space))
    assert found.dtype == np.uint16
    assert np.array_equal(found, values)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_tiff_keeps_its_levels(mode):
    values = levels(6, 9)
    assert np.array_equal(read(tiff(values, mode))[0], values)


def row(count, body, **named):
    """The levels of a TIFF of one row, some of whose tags are others."""
    other = {"bits": (258, 3), "white": (262, 3)}
    changed = [(*other[name], [value]) for name, value in named.items()]
    known = [tag for tag in grey(count, 1, 1) if tag[0] not in {own[0] for own in changed}]
    return read(made([*known, *changed, (273, 4, [-1]), (279, 4, [len(body)])], body))[
        0, 0
    ].tolist()


def test_twelve_bits_are_spread_over_sixteen_and_white_may_be_zero():
    assert row(2, b"\x00\x1f\xff", bits=12) == [16, 65_535]  # 1 and 4095
    # 136 and 137 are at 2176.498 and 2192.502.
    assert row(2, b"\x08\x80\x89", bits=12) == [2176, 2193]
    for bits, body in ((8, b"\x00\x40\xff"), (16, b"\x00\x00\x00\x40\xff\xff")):
        assert row(3, body, bits=bits, white=0) == [2**bits - 1, 3 * 2**bits // 4 - 1, 0]


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_laid_on_the_background(channels):
    values = levels(channels, 4, 4)
    found = read(encode_png(values), background=(255, 0, 128) if channels == 4 else (128,) * 3)
    below = np.array([255, 0, 128] if channels == 4 else [128])[:, None, None] * 257
    share = values[-1:] / 65_535
    exact = values[:-1] * share + below * (1 - share)
    assert np.abs(found - exact).max() <= 0.5 + 1e-9


def test_only_the_transparent_color_is_laid_on_the_background():
    """Others that share a channel with it are opaque."""
    rows = [[(300, 2, 65_000), (300, 2, 64_999)], [(300, 9, 8), (7, 2, 65_000)]]
    values = np.moveaxis(np.array(rows, np.uint16), -1, 0)
    found = read(tagged(values, b"tRNS", values[:, 0, 0].astype(">u2").tobytes()))
    assert found[:, 0, 0].tolist() == [65_535] * 3
    opaque = np.array([[False, True], [True, True]])
    assert np.array_equal(found[:, opaque], values[:, opaque])
    grey = np.array([[[9, 300, 301], [299, 65_000, 300]]], np.uint16)
    found = read(tagged(grey, b"tRNS", b"\x01\x2c"))  # 300
    assert np.array_equal(found, np.where(grey == 300, 65_535, grey))


def test_eight_bits_and_sixteen():
    values = np.arange(65_536, dtype=np.uint16).reshape(1, 1, 256, 256)
    narrow = np.rint(values / 257)
    assert np.array_equal(rescale_levels(values, "uint8"), narrow)
    wide = rescale_levels(np.arange(256, dtype=np.uint8), "uint16")
    assert np.array_equal(wide, np.arange(256) * 257)
    assert np.array_equal(rescale_levels(wide, "uint8"), np.arange(256))
    space = Space(channels=1, size=(256, 256), levels=65_536)
    for shown in (values, values.astype(np.int32)):
        assert np.array_equal(image.render(shown, space), narrow)


def test_scaling_is_that_of_floats():
    values = levels(3, 24, 32)
    done = fit_planes(values, (8, 8), "crop", [0, 0, 0])
    for plane, own in zip(values, done, strict=True):
        floats = Image.fromarray(plane.astype(np.float32))
        exact = np.asarray(floats.resize((8, 8), Image.Resampling.BICUBIC, box=(4, 0, 28, 24)))
        assert np.abs(own - exact.clip(0, 65_535)).max() <= 0.51
    padded = fit_planes(values, (16, 16), "pad", [1, 2, 3])
    assert padded[:, 0].tolist() == [[k] * 16 for k in (1, 2, 3)]


def test_orientation_turns_every_plane():
    values = levels(3, 4, 6)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        found = read(tagged(values, b"eXIf", exif.tobytes()[6:]))
        shown = Image.fromarray(rescale_levels(values, "uint8").transpose(1, 2, 0))
        shown.getexif()[0x0112] = turn
        upright = np.asarray(ImageOps.exif_transpose(shown)).transpose(2, 0, 1)
        assert np.array_equal(rescale_levels(found, "uint8"), upright), turn


def tagged(values: np.ndarray, name: bytes, data: bytes) -> bytes:
    """A PNG with another chunk."""
    whole, at = encode_png(values), len(SIGNATURE) + 25
    return whole[:at] + chunk(name, data) + whole[at:]


@pytest.mark.parametrize(
    ("profile", "dtype"),
    [(icc_profiles.rgb("sRGB", "sRGB"), "uint16"), (icc_profiles.rgb("AdobeRGB", 2.2), "uint8")],
)
def test_another_color_space_has_eight_bits(profile, dtype):
    values = levels(3, 4, 4)
    data = tagged(values, b"iCCP", b"x\0\0" + zlib.compress(profile))
    found = read(data)
    assert found.dtype == dtype
    if dtype == "uint8":
        assert np.array_equal(found, to_pixels(decode(data)))
        assert read(data, numbers="uint16").dtype == np.uint16


def gathered(folder, **options):
    events = []
    images = finish(read_images(folder, **options), events.append)
    return images, [event.text for event in events if isinstance(event, Notice)]


def test_a_profile_that_costs_bits_is_named(tmp_path):
    profile = b"x\0\0" + zlib.compress(icc_profiles.grey(1.8))
    (tmp_path / "a.png").write_bytes(tagged(levels(1, 4, 4), b"iCCP", profile))
    found, notices = gathered(tmp_path)
    assert found.summary.modes == {"L": 1}
    (line,) = (text for text in notices if "bits" in text)
    assert "only 8 of 16 bits kept because of the color profile" in line
    _, notices = gathered(tmp_path, bits=8)
    assert not any("bits" in text for text in notices)


def test_a_color_tiff_that_loses_bits_is_named(tmp_path):
    """Pillow reads such a file, but does not write one."""
    tags = [(256, 3, [4]), (257, 3, [4]), (258, 3, [16, 16, 16]), (259, 3, [1]), (262, 3, [2]),
            (273, 4, [-1]), (277, 3, [3]), (278, 3, [4]), (279, 4, [96])]  # fmt: skip
    data = made(tags, bytes(range(96)))
    (tmp_path / "a.tif").write_bytes(data)
    _, notices = gathered(tmp_path)
    (line,) = (text for text in notices if "bits" in text)
    assert "only 8 of 16 bits kept of color TIFFs" in line
    _, notices = gathered(tmp_path, bits=8)
    assert not any("bits" in text for text in notices)


@pytest.mark.parametrize(
    ("kinds", "bits", "dtype", "channels"),
    [
        ("111", None, "uint16", 1),
        ("131", None, "uint16", 3),
        ("118", None, "uint8", 1),
        ("811", None, "uint8", 1),
        ("183", 16, "uint16", 3),
        ("113", 8, "uint8", 3),
    ],
)
def test_a_set_has_the_bits_that_all_its_images_have(kinds, bits, dtype, channels, tmp_path):
    """Files of a letter each: `1` grey of 16 bits, `3` color of 16 bits, `8` grey of 8 bits."""
    (folder := tmp_path / "data").mkdir()
    for k, kind in enumerate(kinds):
        values = levels(3 if kind == "3" else 1, 6, 6)
        data = encode_png(rescale_levels(values, "uint8") if kind == "8" else values)
        (folder / f"{k:03d}.png").write_bytes(data)
    found, notices = gathered(folder, bits=bits)
    assert (found.stored.dtype.name, found.stored.shape[1]) == (dtype, channels)
    lost = dtype == "uint8" and bits is None
    assert any("have 16 bits and are reduced to 8" in text for text in notices) == lost
    kept, _ = gathered(folder, bits=bits, cache=tmp_path / "cache")
    assert np.array_equal(kept.stored, found.stored)
    # A model of these levels reads the same numbers, and knows them as the same set.
    again, _ = gathered(folder, numbers=dtype, size=(6, 6), channels=channels)
    assert np.array_equal(again.stored, found.stored)
    assert again.fingerprint == found.fingerprint


# -- twelve bits of sixteen ------------------------------------------------------------------------


def camera(folder: Path, count: int = 60) -> Path:
    """TIFFs of 16x16 whose levels are 120 to 2,600: soft spots, as a camera of 12 bits has them."""
    folder.mkdir()
    y, x = np.mgrid[:16, :16]
    for k in range(count):
        spot = np.exp(-((x - 4 - k % 8) ** 2 + (y - 4 - k // 8) ** 2) / 18)
        spot = (spot - spot.min()) / (spot.max() - spot.min())
        values = np.rint(120 + 2480 * spot).astype(np.uint16)
        (folder / f"{k:02d}.tif").write_bytes(tiff(values))
    return folder


def test_the_limits_are_those_of_the_samples(tmp_path):
    found = finish(read_images(camera(tmp_path / "data")))
    assert (found.space.levels, found.space.limits) == (65_536, (120, 2600))
    assert found.estimated_space.limits is None
    streamed = finish(read_images(tmp_path / "data", keep=0, index=tmp_path / "index"))
    assert streamed.space == found.space
    shown = image.render(found.stored, found.space)
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("values", [(0, 65_535), (9, 32_776), (7, 7), (3, 9)])
def test_levels_that_are_all_used_or_all_one_or_of_8_bits_have_no_limits(values, dtype, tmp_path):
    for k, value in enumerate(values):
        picture = np.full((4, 4), value).astype(dtype)
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    limits = finish(read_images(tmp_path)).space.limits
    assert limits == ((3, 9) if (values, dtype) == ((3, 9), "uint16") else None)


def test_a_model_of_them_draws_their_levels(diffuse, recipe):
    data = camera(Path("data"))
    line = ("train", data, "--config", recipe, "--steps", 100, "--size", 16, "-q")
    assert diffuse(*line).code == 0
    found = load("model.safetensors").blueprint
    assert found.space.limits == (120, 2600)
    assert found.denoiser(None).levels == 2481
    assert b'\\"version\\":9' in Path("model.safetensors").read_bytes()
    assert diffuse("sample", "model.safetensors", "-n", 8, "--steps", 10, "-o", "out").code == 0
    real = np.stack([np.asarray(Image.open(path)) for path in sorted(data.iterdir())]).astype(float)
    drawn = np.stack([pixels("out", k) for k in range(8)])
    assert (drawn.min() >= 120, drawn.max() <= 2600) == (True, True)
    assert abs(drawn.mean() - real.mean()) < real.std()
    assert real.std() / 2 < drawn.std() < real.std() * 2
    grid = np.asarray(Image.open("out/grid.png").convert("L"))
    assert grid.std() > 30, "it is not black"
    assert ", levels 120 to 2,600" in diffuse("info", "model.safetensors").out
    told = diffuse("info", data)
    assert "in [-1, 1], which is 120 to 2,600: samples use no other levels" in told.out
    assert "blank" not in told.out
    bits = diffuse("eval", "model.safetensors", data, "-n", 4, "--metrics", "likelihood", "--json")
    assert 0 < bits.json["bits_per_dim"] < 16


def of_camera(folder, change, count=8):
    """The images of a camera with other levels."""
    camera(folder, count)
    for path in folder.iterdir():
        path.write_bytes(tiff(change(np.asarray(Image.open(path))).astype(np.uint16)))
    return folder


def test_a_model_of_other_limits_is_no_teacher_and_a_beginning_that_is_told(diffuse, recipe):
    data, other = camera(Path("data"), 8), of_camera(Path("other"), lambda values: values * 2)
    assert diffuse("train", data, "--config", recipe, "--steps", 2, "-q").code == 0
    line = ("distill", "model.safetensors", "--steps", 2, "-q")
    diffuse(*line, other).fails(2, "was trained on levels 120 to 2,600, not levels 240 to 5,200")
    diffuse(*line, data).ok()
    line = ("train", other, "--init", "model.safetensors", "--steps", 1, "-o", "n.safetensors")
    assert "levels 120 to 2,600 become levels 240 to 5,200" in diffuse(*line).ok().err
    assert load("n.safetensors").blueprint.space.limits == (240, 5200)


@pytest.mark.parametrize("limits", [(120, 2600), None])
def test_a_run_that_goes_on_keeps_its_levels(diffuse, recipe, limits):
    """With images of all levels and of 8 bits that are new, or without one of all levels."""
    data = camera(Path("data"), 8)
    wide = tiff(np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16))
    line = ("train", data, "--config", recipe, "--steps", 2)
    if limits is None:
        (data / "wide.tif").write_bytes(wide)
    assert diffuse(*line, "--stop-at", 1).code == 0
    if limits is None:
        (data / "wide.tif").unlink()
    else:
        (data / "wide.tif").write_bytes(wide)
        Image.new("L", (16, 16), 3).save(data / "eight.png")
    ran = diffuse(*line, "--resume").ok()
    assert ("outside of the run's 120 to 2,600" in ran.err) == (limits is not None)
    space = load("model.safetensors").blueprint.space
    assert (space.levels, space.limits) == (65_536, limits)


def test_pairs_have_limits_of_their_own_and_psnr_has_the_range_of_the_samples(
    diffuse, recipe, monkeypatch
):
    measured = Mock(side_effect=paired.compute_pixel_metrics)
    monkeypatch.setattr(paired, "compute_pixel_metrics", measured)
    data = camera(Path("data"), 8)
    beside = of_camera(Path("beside"), lambda values: values // 10 + 9000)
    line = ("--given", beside, "--steps", 2, "-q")
    diffuse("train", data, "--config", recipe, *line).ok()
    encoder = Conditioner.from_blueprint(load("model.safetensors").blueprint)
    assert (encoder.space.limits, encoder.input_space.limits) == ((120, 2600), (9012, 9260))
    diffuse("eval", "model.safetensors", data, *line, "-n", 4, "--metrics", "answers").ok()
    assert {call.args[-1] for call in measured.call_args_list} == {2480}
