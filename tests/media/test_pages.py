"""TIFF stacks: pages as channels, of 8 and 16 bits."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse_cli.core.space import Space
from diffuse_cli.data import read_images, summary
from diffuse_cli.media import ReadSettings, describe_space, image
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.image.planes import encode_tiff
from diffuse_cli.metrics import Words
from diffuse_cli.system.events import finish

DRAW = np.random.default_rng(4)
STACK = ReadSettings(layout="pages")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("pages", [1, 3, 64])
def test_what_is_written_is_read(pages, dtype):
    values = DRAW.integers(0, np.iinfo(dtype).max + 1, (pages, 6, 9)).astype(dtype)
    levels = int(np.iinfo(dtype).max) + 1
    space = Space(channels=pages, size=(6, 9), levels=levels, layout="pages")
    image.check(space)
    found = image.read(image.encode(values, space), STACK)
    assert (found.values.dtype, found.layout, found.channels) == (dtype, "pages", pages)
    assert np.array_equal(found.values, values)
    seen = image.render(values[None], space)
    assert (seen.dtype, seen.shape[:2]) == (np.uint8, (1, 1))


def stack(pages, **options):
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], **options)
    return file.getvalue()


def test_pages_of_eight_and_sixteen_bits_have_sixteen():
    pages = [Image.new("L", (4, 4), 3), Image.new("I;16", (4, 4), 5000)]
    found = image.read(stack(pages), STACK).values
    assert found[:, 0, 0].tolist() == [3 * 257, 5000]


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([Image.new("L", (4, 4)), Image.new("L", (5, 4))], reasons.PAGES),
        ([Image.new("RGB", (4, 4))], reasons.PAGES),
        ([Image.new("L", (2, 2))] * 65, reasons.MANY_PAGES),
    ],
)
def test_what_is_no_stack_is_named(pages, reason):
    with pytest.raises(Unusable) as caught:
        image.read(stack(pages), STACK)
    assert caught.value.reason == reason


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_stack_is_turned_once(dtype, orientation):
    page = Image.fromarray(DRAW.integers(0, 256, (2, 3)).astype(dtype))
    data = stack([page, page], tiffinfo={274: orientation})
    (upright,) = image.read(data, ReadSettings()).values
    assert np.array_equal(image.read(data, STACK).values, [upright, upright])


def test_stacks_of_a_set_have_as_many_pages_and_no_colors(tmp_path):
    for k, pages in enumerate((4, 4, 3, 1)):
        values = DRAW.integers(0, 256, (pages, 80, 72)).astype(np.uint8)
        (tmp_path / f"{k}.tif").write_bytes(encode_tiff(values))
    found = finish(read_images(tmp_path, layout="pages"))
    assert found.stored.shape == (2, 4, 64, 64)
    assert found.summary.skipped[reasons.SHAPE][0] == 2
    assert found.summary.kind == "4 channels of L"
    assert summary.from_dict(found.summary.to_dict()).kind == found.summary.kind
    assert describe_space(found.space) == "64x64, 4 channels"
    assert Words.of(found.space).channels == ()
    array = Space(channels=1, size=(8, 8), medium="array")
    assert describe_space(array) == "8x8, 1 channel"


def test_a_model_of_stacks(lab, diffuse):
    model = lab["stack"]
    assert diffuse("sample", model, "-n", 2, "--steps", 2, "-o", "out", "-q").code == 0
    drawn = image.read(Path("out/00001.tif").read_bytes(), STACK).values
    assert (drawn.shape, drawn.dtype) == ((3, 8, 8), np.uint8)
    assert Image.open("out/grid.png").mode == "L"
    line = ("eval", model, lab["pages"], "-n", 2, "--steps", 2, "--metrics", "random-kid")
    assert "KID uses random features" in diffuse(*line).err
