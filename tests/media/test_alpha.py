"""Transparency as a channel: stored on a background, and written as straight colors."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import Space
from diffuse_cli.data import read_images
from diffuse_cli.media import ReadSettings, image
from diffuse_cli.media.image.planes import (
    clamp_composite,
    composite_planes,
    encode_png,
    remove_background,
)
from diffuse_cli.system.events import finish

DRAW = np.random.default_rng(6)
WHITE, TEAL = (255, 255, 255), (0, 128, 130)


def straight(channels, dtype=np.uint8, side=16):
    top = np.iinfo(dtype).max
    values = DRAW.integers(0, top + 1, (channels, side, side)).astype(dtype)
    values[-1, :4] = 0
    values[-1, 4:8] = top
    return values


def space_of(values: np.ndarray, background: tuple[int, ...]) -> Space:
    levels = int(np.iinfo(values.dtype).max) + 1
    layout = f"alpha:{bytes(background).hex()}"
    size = values.shape[1:]
    return Space(channels=len(values), size=size, levels=levels, layout=layout)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("background", [WHITE, TEAL])
def test_what_is_read_is_written_and_read_again(channels, background, dtype):
    found = image.read(
        encode_png(straight(channels, dtype)), ReadSettings(None, None, background, layout="alpha")
    )
    assert found.layout == f"alpha:{bytes(background).hex()}"
    assert found.values.dtype == dtype
    assert len(found.values) == (2 if channels == 2 and background == WHITE else 4)
    space = space_of(found.values, background)
    image.check(space)
    assert np.array_equal(clamp_composite(found.values, background), found.values)
    again = image.read(image.encode(found.values, space), ReadSettings(layout=space.layout))
    assert np.array_equal(again.values, found.values)


def test_opaque_pixels_are_exact_and_others_are_within_a_level_on_any_background():
    values = straight(4, side=64)
    back = remove_background(composite_planes(values, WHITE), WHITE)
    opaque = np.broadcast_to(values[-1:] == 255, values.shape)
    assert np.array_equal(back[opaque], values[opaque])
    assert np.array_equal(back[-1], values[-1])
    assert (back[:3][:, back[-1] == 0] == 255).all()
    for other in (WHITE, (0, 0, 0), TEAL):
        apart = composite_planes(back, other).astype(int) - composite_planes(values, other)
        assert np.abs(apart).max() <= 1


def test_what_no_color_gives_becomes_what_one_does():
    drawn = DRAW.integers(0, 256, (4, 16, 16)).astype(np.uint8)
    space = space_of(drawn, TEAL)
    written = image.read(image.encode(drawn, space), ReadSettings(layout=space.layout)).values
    seen = image.render(drawn[None], space)[0]
    assert np.abs(seen.astype(int) - written[:3]).max() <= 1
    clear = np.concatenate([drawn[:3], np.zeros_like(drawn[:1])])
    assert np.array_equal(image.render(clear[None], space)[0][:, 0, 0], TEAL)


def test_scaling_has_no_fringe_of_hidden_colors():
    values = np.zeros((4, 32, 32), np.uint8)
    values[:, :, :16] = np.array([200, 10, 10, 255])[:, None, None]
    values[:3, :, 16:] = np.array([0, 255, 0])[:, None, None]  # hidden
    found = image.read(encode_png(values), ReadSettings(size=(9, 9), layout="alpha")).values
    back = remove_background(found, WHITE)
    visible = back[-1] > 24
    assert visible.any()
    red, green, _ = back[:3][:, visible]
    assert green.max() <= 12
    assert red.min() >= 190


def saved(folder: Path, *modes: str) -> Path:
    folder.mkdir()
    for k, mode in enumerate(modes):
        bands = len(Image.new(mode, (1, 1)).getbands())
        values = DRAW.integers(0, 256, (6, 6, bands)).astype(np.uint8)
        Image.fromarray(values[..., 0] if bands == 1 else values, mode).save(folder / f"{k}.png")
    return folder


@pytest.mark.parametrize(
    ("modes", "channels"),
    [(["LA", "L"], 2), (["L", "RGBA"], 4), (["RGBA", "LA"], 4), (["RGB", "L"], 4)],
)
def test_a_set_has_the_channels_of_its_richest_image(modes, channels, tmp_path):
    folder = saved(tmp_path / "data", *modes)
    found = finish(read_images(folder, layout="alpha"))
    assert found.stored.shape[1] == channels
    for k, mode in enumerate(modes):
        if mode in ("L", "RGB"):
            assert (found.stored[k, -1] == 255).all()
        whole = np.asarray(Image.open(folder / f"{k}.png").convert("RGBA")).transpose(2, 0, 1)
        expected = composite_planes(whole, WHITE)
        assert np.array_equal(found.stored[k][-1], expected[-1])
        assert np.array_equal(found.stored[k][:-1], expected[:3] if channels == 4 else expected[:1])
    same = finish(read_images(folder, layout=found.layout, channels=channels, size=(6, 6)))
    assert same.fingerprint == found.fingerprint


def test_a_palette_with_a_transparent_color():
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    file = io.BytesIO()
    picture.save(file, "GIF", transparency=1)
    found = image.read(file.getvalue(), ReadSettings(layout="alpha")).values
    assert found[:, 0].T.tolist() == [[10, 20, 30, 255], [255, 255, 255, 0]]


@pytest.mark.parametrize("layout", ["alpha", "alpha:12345", "alpha:zzzzzz", "HWC"])
def test_a_layout_that_no_image_has_is_refused(layout):
    with pytest.raises(InvalidArgument, match="cannot have layout"):
        image.check(Space(channels=4, size=(8, 8), layout=layout))


def test_grey_on_a_colored_background_is_on_its_luma():
    asked = ReadSettings(channels=2, background=TEAL, layout="alpha")
    found = image.read(encode_png(straight(2)), asked).values
    space = space_of(found, TEAL)
    assert (found[0, :4] == 90).all()
    assert (image.render(found[None], space)[0, 0, :4] == 90).all()
    again = image.read(image.encode(found, space), asked).values
    assert np.array_equal(again[:, :8], found[:, :8])
    assert np.abs(again.astype(int) - found).max() <= 2
    padded = image.read(encode_png(straight(2)), replace(asked, size=(16, 24), fit="pad")).values
    assert padded[:, 0, 0].tolist() == [90, 0]
