"""Every kind of pixel, exactly; and every kind of file that holds none."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_corpus import BOMB, chunk, decode, encoded, noise, png
from odd_files import grey, tiff
from PIL import Image, ImageOps
from xxhash import xxh3_128_digest

from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.figures import to_image as to_image
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.media.image.decoding import read_image
from diffuse_cli.media.image.planes import fit_image as fit
from diffuse_cli.media.image.planes import image_digest, pixel_digest, to_pixels
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
def test_lossless_files_give_their_pixels(mode: str, kind: str) -> None:
    image = noise(1, (5, 7), mode)
    if kind == "GIF" and mode == "RGB":
        image = image.quantize(256).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    assert array(encoded(image, kind, **options)).tolist() == (
        np.asarray(image.convert("RGB") if kind == "WEBP" else image).tolist()
    )


def test_jpeg_is_read_and_grey_stays_one_channel() -> None:
    assert decode(encoded(noise(1), "JPEG")).mode == "L"
    assert decode(encoded(noise(1, mode="RGB"), "JPEG")).mode == "RGB"


def test_one_bit_becomes_black_and_white() -> None:
    bits = np.array([[True, False], [False, True]])
    image = decode(encoded(Image.fromarray(bits)))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[255, 0], [0, 255]]


def test_16_bit_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 129, 256, 257], [32767, 32768, 65000, 65534, 65535]], np.uint16)
    expected = np.rint(values.astype(float) * 255 / 65535).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(values), kind))
        assert image.mode == "L"
        assert np.asarray(image).tolist() == expected.tolist()


def test_big_endian_16_bit_tiff() -> None:
    values = np.array([[0, 257, 65535]], ">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert array(encoded(image, "TIFF")).tolist() == [[0, 1, 255]]


def test_12_bit_tiff() -> None:
    tags = [tag for tag in grey(2, 1, 1, (273, 4, [-1]), (279, 4, [3])) if tag[0] != 258]
    data = tiff([*tags, (258, 3, [12])], b"\xff\xf8\x00")  # 4095 and 2048
    assert array(data).tolist() == [[255, 128]]


def two_bands(kind: int, photometric: int, *more: Any) -> bytes:
    """A TIFF of one pixel with a second band of a kind: 1 alpha in the first, 2 alpha beside it."""
    size = [(256, 4, [1]), (257, 4, [1]), (258, 3, [8, 8]), (259, 3, [1])]
    kinds = [(262, 3, [photometric]), (277, 3, [2]), (338, 3, [kind])]
    return tiff([*size, *kinds, (273, 4, [-1]), (279, 4, [2]), *more], bytes([50, 128]))


def test_transparency_within_the_pixels_of_a_tiff() -> None:
    assert array(two_bands(2, 1), "white").tolist() == [[(50 * 128 + 255 * 127 + 127) // 255]]
    within = 50 * 255 // 128
    assert array(two_bands(1, 1), "white").tolist() == [[(within * 128 + 255 * 127 + 127) // 255]]


def test_a_palette_with_transparency_in_a_tiff() -> None:
    colors = [0] * 768
    colors[50] = 255 * 256  # red of the 50th
    red = array(two_bands(2, 3, (320, 3, colors)), "blue").tolist()
    assert red == [[[128, 0, 127]]]


def test_16_bit_transparent_grey() -> None:
    rows = b"\0" + struct.pack(">HHH", 0, 1000, 65535)
    data = png(3, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 1000)))
    assert array(data, "#808080").tolist() == [[0, 128, 255]]


def test_16_bit_transparent_color() -> None:
    rows = b"\0" + struct.pack(">6H", 0x8040, 0, 0, 0, 65535, 0)
    data = png(2, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 0x8040, 0, 0)))
    assert array(data, "blue").tolist() == [[[0, 0, 255], [0, 255, 0]]]


def test_16_bit_transparent_color_of_low_levels() -> None:
    rows = b"\0" + struct.pack(">6H", 200, 0, 0, 0, 65535, 0)
    data = png(2, 1, 16, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 200, 0, 0)))
    assert array(data, "blue").tolist() == [[[0, 0, 255], [0, 255, 0]]]


@pytest.mark.parametrize(
    ("depth", "rows", "key", "seen"),
    [
        (2, bytes([0, 0b11_00_01_10]), 2, [255, 0, 85, 128]),
        (4, bytes([0, 0xF0, 0x18]), 15, [128, 0, 17, 136]),
        (8, bytes([0, 15, 0, 17, 255]), 15, [128, 0, 17, 255]),
    ],
)
def test_transparent_grey_of_few_bits(depth: int, rows: bytes, key: int, seen: list[int]) -> None:
    data = png(4, 1, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key)))
    assert array(data, "#808080").tolist() == [seen]


@pytest.mark.parametrize("background", ["white", "black", "#12c8f0"])
def test_transparent_color_is_composited(background: str) -> None:
    image = noise(2, (9, 6), "RGBA")
    rgba = np.asarray(image)
    below = np.array(Image.new("RGB", (1, 1), background))
    expected = over(rgba[..., :3], rgba[..., 3], below)
    assert array(encoded(image), background).tolist() == expected.tolist()


def test_transparent_grey_stays_grey_on_grey() -> None:
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


def test_palette() -> None:
    expected = [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]
    assert array(encoded(palette_image())).tolist() == expected
    assert array(encoded(palette_image(), "GIF")).tolist() == expected


def test_palette_with_transparency() -> None:
    one = encoded(palette_image(), transparency=1)
    assert array(one, "#0000ff").tolist() == [[[255, 0, 0], [0, 0, 255], [10, 20, 30]]]
    each = encoded(palette_image(), transparency=bytes([255, 0, 128]))
    third = over(np.array([[[10, 20, 30]]]), np.array([[128]]), np.array([0, 0, 255]))
    assert array(each, "#0000ff").tolist() == [[[255, 0, 0], [0, 0, 255], third[0, 0].tolist()]]
    gif = encoded(palette_image(), "GIF", transparency=2)
    assert array(gif, "white").tolist() == [[[255, 0, 0], [0, 255, 0], [255, 255, 255]]]


def test_grey_palette_stays_grey() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 99, 99, 99, 255, 255, 255])
    image.putdata([0, 1, 2])
    assert decode(encoded(image)).mode == "L"
    assert array(encoded(image)).tolist() == [[0, 99, 255]]
    assert array(encoded(image, transparency=0), "#323232").tolist() == [[50, 99, 255]]
    assert decode(encoded(image, transparency=0), "red").mode == "RGB"


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (2, 2), (255, 0, 255, 0))
    assert array(encoded(image, "TIFF")).tolist() == [[[0, 255, 0]] * 2] * 2
    assert array(encoded(image, "JPEG", quality=100)).tolist() == [[[0, 255, 0]] * 2] * 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "green", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], lossless=True, duration=50
    )
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert array(data).tolist() == [[[255, 0, 0]] * 4] * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert array(encoded(Image.fromarray(pixels), kind, exif=exif)).tolist() == upright.tolist()


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 0), ("I", 70_000), ("I", -1)])
def test_pixels_of_32_bits_are_unsupported(mode: str, value: float) -> None:
    reason = reasons.FLOATS if mode == "F" else reasons.PIXELS
    with pytest.raises(Unusable, match=reason):
        decode(encoded(Image.new(mode, (2, 2), value), "TIFF"))


WHOLE = encoded(noise(4, (40, 40), "RGB"))
RUBBISH = {
    "empty": (b"", reasons.EMPTY),
    "text": (b"hello", reasons.NOT_AN_IMAGE),
    "zeros": (bytes(1000), reasons.NOT_AN_IMAGE),
    "cut header": (WHOLE[:20], reasons.CORRUPT),
    "cut pixels": (WHOLE[: len(WHOLE) // 2], reasons.CORRUPT),
    "changed pixels": (WHOLE[:200] + b"\0\xff" * 50 + WHOLE[300:], reasons.CORRUPT),
    "cut jpeg": (encoded(noise(4, (40, 40)), "JPEG")[:-300], reasons.CORRUPT),
    "cut gif": (encoded(noise(4, (40, 40)), "GIF")[:500], reasons.CORRUPT),
    "cut webp": (encoded(noise(4, (40, 40)), "WEBP")[:200], reasons.CORRUPT),
    "cut tiff": (encoded(noise(4, (40, 40)), "TIFF")[:500], reasons.CORRUPT),
    "bomb": (BOMB, reasons.BOMB),
    "small bomb": (png(9500, 9500, 8, 0, b"\0" * 100), reasons.BOMB),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reasons.OTHER_FORMAT),
    "pdf": (b"%PDF-1.7\n", reasons.OTHER_FORMAT),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", reasons.OTHER_FORMAT),
    "ppm": (b"P6 1 1 255\n\0\0\0", reasons.OTHER_FORMAT),
    "heic": (b"\0\0\0\x18ftypheic", reasons.OTHER_FORMAT),
    "ico": (encoded(noise(4, (16, 16)), "ICO"), reasons.OTHER_FORMAT),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_has_a_reason(name: str) -> None:
    data, reason = RUBBISH[name]
    with pytest.raises(Unusable) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", loaded.append)
    for name in ("bomb", "small bomb"):
        with pytest.raises(Unusable, match=reasons.BOMB):
            decode(RUBBISH[name][0])
    assert not loaded


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
def test_whatever_pillow_raises_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, where: str, error: type[Exception], reason: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    data = encoded(palette_image())
    monkeypatch.setattr(where, fail)
    with pytest.raises(Unusable) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_damaged_bytes_are_an_image_or_a_reason() -> None:
    """A PNG has checksums, so none of its images is used. Of other formats some are."""
    rng = np.random.default_rng(0)
    image = noise(5, (20, 20), "RGB")
    known = {reasons.CORRUPT, reasons.NOT_AN_IMAGE, reasons.BOMB, reasons.OTHER_FORMAT}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        whole = np.frombuffer(encoded(image, kind), np.uint8)
        assert decode(whole.tobytes()).size == (20, 20)
        usable, refused = 0, Counter[str]()
        for _ in range(100):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 400), 5)] = rng.integers(0, 256, 5)
            try:
                assert decode(data.tobytes()).mode in ("L", "RGB")
                usable += 1
            except Unusable as error:
                refused[error.reason] += 1
        assert refused.keys() <= known, kind
        assert refused[reasons.CORRUPT] > 0, kind
        assert usable == 0 if kind == "PNG" else usable > 10, kind


def test_nothing_is_printed(tmp_path: Path) -> None:
    """Warnings, log records and what C libraries write, in a process of its own."""
    code = """
import sys; sys.path[:0] = sys.argv[1:]
import test_image as t, numpy as np
t.test_damaged_bytes_are_an_image_or_a_reason()
t.test_palette_with_transparency()
for data, reason in t.RUBBISH.values():
    try: t.decode(data)
    except t.Unusable: pass
"""
    paths = map(str, Path(__file__).parents[:2])
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *paths], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_read_image_says_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"hello")
    good = tmp_path / "good.png"
    good.write_bytes(encoded(noise(1)))
    image, remarks = read_image(good)
    assert (image.tobytes(), remarks) == (noise(1).tobytes(), ())
    fifo, loop, device = (tmp_path / f"{name}.png" for name in ("fifo", "loop", "device"))
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(2**29 + 1)
    cases = {
        bad: "not an image",
        tmp_path / "none.png": "no such image",
        bad / "within.png": "no such image",
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


def test_fit_covers_and_crops_the_center() -> None:
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))
    assert np.asarray(fit(wide, (10, 10))).tolist() == [[255] * 10] * 10
    assert fit(wide, (10, 30)) is wide
    assert fit(wide, (7, 5)).size == (5, 7)
    assert fit(Image.new("L", (1, 3000)), (8, 8)).size == (8, 8)


@pytest.mark.parametrize("shape", [(1500, 2000), (801, 400), (333, 334), (65, 70), (20, 31)])
def test_fit_is_pillows_but_for_rounding(shape: tuple[int, int]) -> None:
    """Equal, but for images that shrink so much that they are averaged first."""
    draw = np.random.default_rng(5)
    noise = draw.normal(size=(*shape, 3)).cumsum(0).cumsum(1)
    values = (128 + 100 * np.sin(noise / 40) + draw.normal(0, 5, noise.shape)).clip(0, 255)
    image = Image.fromarray(values.astype(np.uint8))
    for size in ((64, 64), (48, 96), (33, 40)):
        expected = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        found = fit(image, size)
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
        assert found.size == expected.size
        shrink = min(shape[0] / size[0], shape[1] / size[1])
        assert difference.max() <= (4 if shrink >= 10 else 0)
        assert difference.mean() < 0.5


def test_fit_antialiases() -> None:
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert abs(np.asarray(fit(checks, (8, 8))).astype(int) - 127).max() <= 2


def test_fit_treats_grey_and_its_color_copy_alike() -> None:
    grey = noise(6, (33, 20))
    after = np.asarray(fit(grey.convert("RGB"), (12, 12)))
    assert (after == np.asarray(fit(grey, (12, 12)))[..., None]).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_round_trip(mode: str) -> None:
    image = noise(7, (5, 3), mode)
    assert to_pixels(image).shape == (len(mode), 3, 5)
    assert to_image(to_pixels(image)).tobytes() == image.tobytes()


def test_digest_knows_mode_and_size() -> None:
    images = [
        Image.new("L", (6, 2)),
        Image.new("L", (2, 6)),
        Image.new("RGB", (2, 2)),
        Image.new("L", (2, 6), 1),
    ]
    names = [pixel_digest(np.asarray(image)) for image in images]
    assert len(set(names)) == 4
    assert names == [image_digest(image) for image in images]
    assert names[0] == pixel_digest(np.asarray(images[0].copy()))


def test_digest_is_the_hash_that_model_files_speak_of() -> None:
    grey, color = noise(1, (6, 2)), noise(2, (5, 3), "RGB")
    expected = xxh3_128_digest(b"L 6x2\n" + grey.tobytes())
    assert pixel_digest(np.asarray(grey)) == expected
    expected = xxh3_128_digest(b"RGB 5x3\n" + color.tobytes())
    assert pixel_digest(np.asarray(color)) == expected


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (700, 500), (90_001, 4), (3, 90_001)])
def test_the_digest_of_an_image_is_that_of_its_pixels(mode: str, size: tuple[int, int]) -> None:
    image = noise(3, size, mode)
    assert image_digest(image) == pixel_digest(np.asarray(image))
