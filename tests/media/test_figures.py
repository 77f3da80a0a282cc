"""Pixels, grids, PNG and GIF: exact levels, right places, the same bytes every time."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffuse_cli.media import figures

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


def frames_of(data: bytes) -> list[Image.Image]:
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("count", "height", "width", "columns", "size"),
    [
        (16, 64, 64, None, (262, 262)),  # four by four
        (10, 64, 64, None, (262, 196)),  # four by three, two cells empty
        (1, 64, 64, None, (64, 64)),
        (3, 64, 64, 5, (196, 64)),  # never wider than its images
        (8, 64, 256, None, (514, 262)),  # two wide columns of four
        (4, 32, 32, None, (130, 130)),  # small ones are twice as large
        (4, 28, 28, None, (170, 170)),  # or three times, to reach 64
        (1, 8, 32, None, (64, 16)),  # by their longer side
        (1, 65, 33, None, (33, 65)),
    ],
)
def test_grid_size(count, height, width, columns, size):
    assert figures.arrange_grid(noise(count, 1, height, width), columns).size == size


def test_grid_places_every_image_and_leaves_the_rest_white():
    images = noise(5, 3, 20, 32)
    sheet = np.asarray(figures.arrange_grid(images, columns=3, padding=1))
    expected = np.full((81, 194, 3), 255, np.uint8)
    for i, each in enumerate(images):
        top, left = i // 3 * 41, i % 3 * 65
        large = np.kron(each.transpose(1, 2, 0), np.ones((2, 2, 1), np.uint8))
        expected[top : top + 40, left : left + 64] = large
    assert np.array_equal(sheet, expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "RGB")])
def test_grid_shows_any_number_of_channels(channels, mode):
    images = noise(1, channels, 64, 64)
    sheet = figures.arrange_grid(images)
    assert sheet.mode == mode
    shown = 3 if mode == "RGB" else 1
    first = np.atleast_3d(np.asarray(sheet)).transpose(2, 0, 1)
    assert np.array_equal(first, images[0, :shown])


def test_png_holds_the_pixels_and_nothing_else():
    pixels = noise(3, 5, 7)
    data = figures.encode_png(pixels)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(opened), pixels.transpose(1, 2, 0))
    dressed = figures.to_image(pixels)
    dressed.info.update(dpi=(72, 72), icc_profile=b"x" * 200, Software="today")
    assert figures.encode_png(dressed) == data
    assert dressed.info, "the caller's image was changed"


def test_gif_loops_and_holds_the_last_frame():
    frames = [figures.arrange_grid(noise(1, 1, 8, 8) // (i + 1)) for i in range(5)]
    data = figures.encode_gif(frames, seconds=1, hold=2)
    opened = Image.open(io.BytesIO(data))
    durations = [frame.info["duration"] for frame in ImageSequence.Iterator(opened)]
    assert opened.info["loop"] == 0
    assert durations == [200, 200, 200, 200, 2200]
    assert data == figures.encode_gif(frames, seconds=1, hold=2)


def test_nothing_is_no_figure():
    for values, *columns in ((noise(0, 1, 4, 4),), (noise(2, 1, 4, 4), 0)):
        with pytest.raises(ValueError, match="at least one"):
            figures.arrange_grid(values, *columns)
    with pytest.raises(ValueError, match="at least one"):
        figures.encode_gif([], seconds=1, hold=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_keeps_every_grey_level(channels):
    images = [LEVELS[0], LEVELS[0][:, ::-1], 255 - LEVELS[0]]
    frames = [figures.to_image(i.repeat(channels, axis=0)) for i in images]
    found = frames_of(figures.encode_gif(frames, seconds=1, hold=0))
    for frame, read in zip(frames, found, strict=True):
        assert np.array_equal(np.asarray(frame.convert("RGB")), np.asarray(read))


def test_gif_keeps_few_colors_exactly_and_greys_neutral():
    flat = np.full((3, 40, 40), 255, np.uint8)
    flat[:, 5:9, 5:9] = np.array([0, 114, 178], np.uint8)[:, None, None]
    busy = noise(3, 40, 40)
    busy[:, 20:] = noise(1, 20, 40)
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    frames = [figures.to_image(flat), figures.to_image(busy), red]
    first, second, third = map(np.asarray, frames_of(figures.encode_gif(frames, seconds=1, hold=0)))
    assert np.array_equal(first, np.asarray(frames[0]))
    assert np.array_equal(third, np.asarray(red))
    greys = second[20:].astype(int)
    assert (greys.max(2) == greys.min(2)).all()
    assert np.abs(greys[..., 0] - busy[0, 20:]).max() <= 2
    assert np.abs(second[:20].astype(int) - busy[:, :20].transpose(1, 2, 0)).mean() < 20


def test_readable():
    said = {1.0: "1.00", 0.4938: "0.49", 0.0096: "0.01", 0.0: "0", 2.43e-9: r"2\!\cdot\!10^{-9}"}
    assert {value: figures.format_fraction(value).strip("$") for value in said} == said


def test_a_sheet_shows_images_dot_by_dot_whatever_the_matplotlibrc_says():
    import matplotlib

    def drawn():
        sheet = figures.Sheet(2.03, 1.51, 97)
        sheet.text(0.1, 0.2, "$x_t$ of 図.png")
        sheet.axes(1, 1, 0.5, 0.3).plot([0, 1, 2], [2, 1, 0], linewidth=1)
        sheet.image(0.5, 0.4, pixels, zoom=3)
        return np.asarray(sheet.render())

    pixels = noise(3, 7, 5)
    page = drawn()
    left, top = round(0.5 * 97), round(0.4 * 97)
    shown = page[top : top + 21, left : left + 15]
    assert np.array_equal(shown, pixels.repeat(3, 1).repeat(3, 2).transpose(1, 2, 0))
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert np.array_equal(drawn(), page)


def test_rows_put_smaller_images_on_white():
    small, large = np.zeros((1, 2, 2), np.uint8), np.zeros((3, 2, 5), np.uint8)
    sheet = np.asarray(figures.arrange_rows([[small, large]]))
    assert sheet.ndim == 3
    zoom = sheet.shape[0] // 2
    assert (sheet[:, : 2 * zoom] == 0).all()
    assert (sheet[:, 2 * zoom : 5 * zoom] == 255).all()
    assert figures.shrink_image(Image.new("L", (1, 400)), 64).size == (1, 64)
