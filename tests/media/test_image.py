"""Every kind of pixel, exactly; files that hold none are in data/test_rubbish.py."""

import io
import os
import struct
from unittest.mock import Mock

import numpy as np
import pytest
from image_corpus import BOMB, chunk, decode, encoded, noise, png
from odd_files import flipped, grey, tiff
from PIL import Image, ImageOps
from xxhash import xxh3_128_digest

from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.figures import to_image as to_image
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.image.decoding import read_image
from diffuse_cli.media.image.planes import fit_image as fit
from diffuse_cli.media.image.planes import image_digest, pixel_digest
from diffuse_cli.system.errors import DataError


def array(data: bytes, background: str = "white") -> np.ndarray:
    return np.asarray(decode(data, background))


def over(above: np.ndarray, alpha: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` on `below` in exact arithmetic, rounded to nearest."""
    alpha = alpha.astype(np.float64) / 255
    if above.ndim == 3:
        alpha = alpha[..., None]
    return np.floor(above * alpha + below * (1 - alpha) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_files_give_their_pixels(mode, kind):
    image = noise(1, (5, 7), mode)
    if kind == "GIF" and mode == "RGB":
        image = image.quantize(256).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    expected = np.asarray(image.convert("RGB") if kind == "WEBP" else image)
    assert array(encoded(image, kind, **options)).tolist() == expected.tolist()
    assert decode(encoded(image, "JPEG")).mode == mode


def test_pixels_of_1_and_12_bits_and_of_another_byte_order():
    bits = encoded(Image.fromarray(np.array([[True, False], [False, True]])))
    assert decode(bits).mode == "L"
    assert array(bits).tolist() == [[255, 0], [0, 255]]
    tags = [tag for tag in grey(2, 1, 1, (273, 4, [-1]), (279, 4, [3])) if tag[0] != 258]
    data = tiff([*tags, (258, 3, [12])], b"\xff\xf8\x00")  # 4095 and 2048
    assert array(data).tolist() == [[255, 128]]
    big = Image.frombytes("I;16B", (3, 1), np.array([[0, 257, 65535]], ">u2").tobytes())
    assert array(encoded(big, "TIFF")).tolist() == [[0, 1, 255]]


def test_16_bit_is_scaled_and_not_clipped():
    values = np.array([[0, 128, 129, 256, 257], [32767, 32768, 65000, 65534, 65535]], np.uint16)
    expected = np.rint(values.astype(float) * 255 / 65535).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(values), kind))
        assert image.mode == "L"
        assert np.asarray(image).tolist() == expected.tolist()


def two_bands(kind, photometric, *more):
    """A TIFF of one pixel with a second band of a kind: 1 alpha in the first, 2 alpha beside it."""
    size = [(256, 4, [1]), (257, 4, [1]), (258, 3, [8, 8]), (259, 3, [1])]
    kinds = [(262, 3, [photometric]), (277, 3, [2]), (338, 3, [kind])]
    return tiff([*size, *kinds, (273, 4, [-1]), (279, 4, [2]), *more], bytes([50, 128]))


def test_transparency_of_a_tiff_may_be_in_its_pixels_or_palette():
    assert array(two_bands(2, 1), "white").tolist() == [[(50 * 128 + 255 * 127 + 127) // 255]]
    within = 50 * 255 // 128
    assert array(two_bands(1, 1), "white").tolist() == [[(within * 128 + 255 * 127 + 127) // 255]]
    colors = [0] * 768
    colors[50] = 255 * 256  # red of the 50th
    assert array(two_bands(2, 3, (320, 3, colors)), "blue").tolist() == [[[128, 0, 127]]]


@pytest.mark.parametrize("red", [0x8040, 200])
def test_a_transparent_color_of_16_bits(red):
    rows = b"\0" + struct.pack(">6H", red, 0, 0, 0, 65535, 0)
    data = png(2, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">HHH", red, 0, 0)))
    assert array(data, "blue").tolist() == [[[0, 0, 255], [0, 255, 0]]]


@pytest.mark.parametrize(
    ("depth", "rows", "key", "seen"),
    [
        (2, bytes([0, 0b11_00_01_10]), 2, [255, 0, 85, 128]),
        (4, bytes([0, 0xF0, 0x18]), 15, [128, 0, 17, 136]),
        (8, bytes([0, 15, 0, 17, 255]), 15, [128, 0, 17, 255]),
        (16, struct.pack(">x4H", 0, 1000, 65535, 257), 1000, [0, 128, 255, 1]),
    ],
)
def test_a_transparent_grey(depth, rows, key, seen):
    data = png(4, 1, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key)))
    assert array(data, "#808080").tolist() == [seen]


@pytest.mark.parametrize("background", ["white", "black", "#12c8f0"])
def test_transparent_color_is_composited(background):
    image = noise(2, (9, 6), "RGBA")
    rgba = np.asarray(image)
    below = np.array(Image.new("RGB", (1, 1), background))
    expected = over(rgba[..., :3], rgba[..., 3], below)
    assert array(encoded(image), background).tolist() == expected.tolist()


def test_transparent_grey_stays_grey_on_grey():
    image = noise(3, (9, 6), "LA")
    grey, alpha = np.asarray(image)[..., 0], np.asarray(image)[..., 1]
    made = decode(encoded(image), "#404040")
    assert made.mode == "L"
    assert np.asarray(made).tolist() == over(grey, alpha, np.array(64)).tolist()
    colored = decode(encoded(image), "red")
    assert colored.mode == "RGB"
    expected = over(np.repeat(grey[..., None], 3, 2), alpha, np.array([255, 0, 0]))
    assert np.asarray(colored).tolist() == expected.tolist()


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([0, 1, 2])
    return image


def test_palette_with_transparency():
    for kind in ("PNG", "GIF"):
        opaque = [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]
        assert array(encoded(palette_image(), kind)).tolist() == opaque
    one = encoded(palette_image(), transparency=1)
    assert array(one, "#0000ff").tolist() == [[[255, 0, 0], [0, 0, 255], [10, 20, 30]]]
    each = encoded(palette_image(), transparency=bytes([255, 0, 128]))
    third = over(np.array([[[10, 20, 30]]]), np.array([[128]]), np.array([0, 0, 255]))
    assert array(each, "#0000ff").tolist() == [[[255, 0, 0], [0, 0, 255], third[0, 0].tolist()]]
    gif = encoded(palette_image(), "GIF", transparency=2)
    assert array(gif, "white").tolist() == [[[255, 0, 0], [0, 255, 0], [255, 255, 255]]]


def test_grey_palette_stays_grey():
    image = palette_image()
    image.putpalette([0, 0, 0, 99, 99, 99, 255, 255, 255])
    assert decode(encoded(image)).mode == "L"
    assert array(encoded(image)).tolist() == [[0, 99, 255]]
    assert array(encoded(image, transparency=0), "#323232").tolist() == [[50, 99, 255]]
    assert decode(encoded(image, transparency=0), "red").mode == "RGB"


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (2, 2), (255, 0, 255, 0))
    assert array(encoded(image, "TIFF")).tolist() == [[[0, 255, 0]] * 2] * 2
    assert array(encoded(image, "JPEG", quality=100)).tolist() == [[[0, 255, 0]] * 2] * 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(kind):
    first, *more = (Image.new("RGB", (4, 4), c) for c in ("red", "green", "blue"))
    data = encoded(first, kind, save_all=True, append_images=more, lossless=True, duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert array(data).tolist() == [[[255, 0, 0]] * 4] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turned = pixels if orientation < 5 else pixels.T
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    upright = turned[:: -1 if down else 1, :: -1 if across else 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert array(encoded(Image.fromarray(pixels), kind, exif=exif)).tolist() == upright.tolist()


def test_a_bomb_is_not_decoded(monkeypatch):
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded.append)
    for data in (BOMB, png(9500, 9500, 8, 0, b"\0" * 100)):
        with pytest.raises(Unusable, match=reasons.BOMB):
            decode(data)
    assert not loaded


def test_a_png_whose_checksum_does_not_match_is_not_used():
    whole = encoded(noise(5, (20, 20), "RGB"))
    for place in (*range(8, 33), *range(37, len(whole) - 16, 31)):  # of the header and the pixels
        with pytest.raises(Unusable):
            decode(flipped(whole, place))


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 0), ("I", 70_000), ("I", -1)])
def test_pixels_of_32_bits_are_unsupported(mode, value):
    reason = reasons.FLOATS if mode == "F" else reasons.PIXELS
    with pytest.raises(Unusable, match=reason):
        decode(encoded(Image.new(mode, (2, 2), value), "TIFF"))


@pytest.mark.parametrize(
    ("where", "error", "reason"),
    [
        ("PIL.Image.open", MemoryError, reasons.MEMORY),
        ("PIL.Image.open", SystemError, reasons.CORRUPT),
        ("PIL.Image.open", Image.DecompressionBombWarning, reasons.BOMB),
        ("PIL.ImageFile.ImageFile.load", MemoryError, reasons.MEMORY),
        ("PIL.ImageFile.ImageFile.load", SystemError, reasons.CORRUPT),
        ("PIL.Image.Image.convert", MemoryError, reasons.MEMORY),
        ("PIL.Image.Image.convert", SystemError, reasons.PIXELS),
    ],
)
def test_whatever_pillow_raises_is_a_reason(monkeypatch, where, error, reason):
    data = encoded(palette_image())
    monkeypatch.setattr(where, Mock(side_effect=error))
    with pytest.raises(Unusable) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_read_image_says_what_is_wrong(tmp_path):
    good, fifo, loop, device, huge = (tmp_path / f"{k}.png" for k in "abcde")
    good.write_bytes(encoded(noise(1)))
    image, remarks = read_image(good)
    assert (image.tobytes(), remarks) == (noise(1).tobytes(), ())
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    with huge.open("wb") as file:
        file.truncate(2**29 + 1)
    cases = {
        tmp_path / "none.png": "no such image",
        good / "within.png": "no such image",
        tmp_path: "a folder",
        fifo: "not a regular file",
        device: "not a regular file",
        loop: "symbolic links",
        huge: "over 512 MiB",
        tmp_path / ("long" * 100): "File name too long",
        tmp_path / "a\0b.png": r"a\\x00b\.png: .*embedded null",
    }
    for path, words in cases.items():
        with pytest.raises(DataError, match=words) as caught:
            read_image(path)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)


def test_fit_covers_and_crops_the_center():
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))
    assert np.asarray(fit(wide, (10, 10))).tolist() == [[255] * 10] * 10
    assert fit(wide, (10, 30)) is wide
    assert fit(wide, (7, 5)).size == (5, 7)
    assert fit(Image.new("L", (1, 3000)), (8, 8)).size == (8, 8)
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(np.asarray(fit(checks, (8, 8))).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("shape", [(801, 400), (333, 334), (65, 70), (20, 31)])
def test_fit_is_pillows_but_for_rounding(shape):
    """Equal, but for images that shrink so much that they are averaged first."""
    draw = np.random.default_rng(5)
    noise = draw.normal(size=(*shape, 3)).cumsum(0).cumsum(1)
    values = (128 + 100 * np.sin(noise / 40) + draw.normal(0, 5, noise.shape)).clip(0, 255)
    image = Image.fromarray(values.astype(np.uint8))
    for size in ((64, 64), (48, 96), (33, 40)):
        expected = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        found = fit(image, size)
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
        shrink = min(shape[0] / size[0], shape[1] / size[1])
        assert difference.max() <= (4 if shrink >= 10 else 0)
        assert difference.mean() < 0.5


def test_fit_treats_grey_and_its_color_copy_alike():
    grey = noise(6, (33, 20))
    after = np.asarray(fit(grey.convert("RGB"), (12, 12)))
    assert (after == np.asarray(fit(grey, (12, 12)))[..., None]).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (6, 2), (2, 6), (700, 500), (90_001, 4), (3, 90_001)])
def test_the_digest_is_the_hash_that_model_files_speak_of(mode, size):
    """That of mode, size and pixels."""
    image = noise(3, size, mode)
    expected = xxh3_128_digest(f"{mode} {size[0]}x{size[1]}\n".encode() + image.tobytes())
    assert image_digest(image) == pixel_digest(np.asarray(image)) == expected
