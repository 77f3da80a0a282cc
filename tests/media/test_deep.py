"""Images of 16 bits: every kind of file exactly, scaled, and in sets with others."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import profiles
import pytest
from PIL import Image, ImageOps
from rubbish import grey
from rubbish import tiff as made

from diffuse_cli.core.space import Space
from diffuse_cli.data import Samples, read_images
from diffuse_cli.events import Notice, finish
from diffuse_cli.media import Asked, image
from diffuse_cli.media._decoding import decode
from diffuse_cli.media._pixels import to_pixels
from diffuse_cli.media._planes import SIGNATURE, chunk, fitted, png, rescaled

STRIP = (273, 4, [-1])

DRAW = np.random.default_rng(5)


def levels(*shape: int) -> np.ndarray:
    return DRAW.integers(0, 65_536, shape).astype(np.uint16)


def tiff(values: np.ndarray, mode: str = "I;16") -> bytes:
    file = io.BytesIO()
    order = ">u2" if mode == "I;16B" else "<u2"
    height, width = values.shape
    Image.frombytes(mode, (width, height), values.astype(order).tobytes()).save(file, "TIFF")
    return file.getvalue()


def read(data: bytes, **asked: Any) -> np.ndarray:
    return image.read(data, Asked(**asked)).values


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(channels: int) -> None:
    values = levels(channels, 7, 5)
    space = image.space(values[None])
    assert space == Space(channels=channels, size=(7, 5), levels=65_536)
    image.check(space)
    found = read(image.encode(values, space))
    assert found.dtype == np.uint16
    assert np.array_equal(found, values)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_tiff_keeps_its_levels(mode: str) -> None:
    values = levels(6, 9)
    assert np.array_equal(read(tiff(values, mode))[0], values)


def test_twelve_bits_are_spread_over_sixteen() -> None:
    tags = [
        (tag, kind, [12] if tag == 258 else v)
        for tag, kind, v in grey(2, 1, 1, STRIP, (279, 4, [3]))
    ]
    found = read(made(tags, b"\x00\x1f\xff"))  # 1 and 4095
    assert found[0, 0].tolist() == [16, 65_535]


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_laid_on_the_background(channels: int) -> None:
    values = levels(channels, 4, 4)
    found = read(png(values), background=(255, 0, 128) if channels == 4 else (128,) * 3)
    below = np.array([255, 0, 128] if channels == 4 else [128])[:, None, None] * 257
    share = values[-1:] / 65_535
    exact = values[:-1] * share + below * (1 - share)
    assert np.abs(found - exact).max() <= 0.5 + 1e-9


def test_one_transparent_colour_is_laid_on_the_background() -> None:
    values = levels(3, 2, 2)
    values[:, 0, 0] = (300, 2, 65_000)
    found = read(tagged(values, b"tRNS", values[:, 0, 0].astype(">u2").tobytes()))
    assert found[:, 0, 0].tolist() == [65_535] * 3
    assert np.array_equal(found[:, 1], values[:, 1])


def test_eight_bits_and_sixteen() -> None:
    values = np.arange(65_536, dtype=np.uint16)
    narrow = rescaled(values, "uint8")
    assert np.array_equal(narrow, np.rint(values / 257))
    wide = rescaled(np.arange(256, dtype=np.uint8), "uint16")
    assert np.array_equal(wide, np.arange(256) * 257)
    assert np.array_equal(rescaled(wide, "uint8"), np.arange(256))


def test_scaling_is_that_of_floats() -> None:
    values = levels(3, 24, 32)
    done = fitted(values, (8, 8), "crop", [0, 0, 0])
    for plane, own in zip(values, done, strict=True):
        floats = Image.fromarray(plane.astype(np.float32))
        exact = np.asarray(floats.resize((8, 8), Image.Resampling.BICUBIC, box=(4, 0, 28, 24)))
        assert np.abs(own - exact.clip(0, 65_535)).max() <= 0.51
    padded = fitted(values, (16, 16), "pad", [1, 2, 3])
    assert padded[:, 0].tolist() == [[k] * 16 for k in (1, 2, 3)]


def test_orientation_turns_every_plane() -> None:
    values = levels(3, 4, 6)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        found = read(tagged(values, b"eXIf", exif.tobytes()[6:]))
        shown = Image.fromarray(rescaled(values, "uint8").transpose(1, 2, 0))
        shown.getexif()[0x0112] = turn
        upright = np.asarray(ImageOps.exif_transpose(shown)).transpose(2, 0, 1)
        assert np.array_equal(rescaled(found, "uint8"), upright), turn


def tagged(values: np.ndarray, name: bytes, data: bytes) -> bytes:
    """A PNG with another chunk."""
    whole, at = png(values), len(SIGNATURE) + 25
    return whole[:at] + chunk(name, data) + whole[at:]


@pytest.mark.parametrize(
    ("profile", "dtype"),
    [(profiles.rgb("sRGB", "sRGB"), "uint16"), (profiles.rgb("AdobeRGB", 2.2), "uint8")],
)
def test_another_colour_space_has_eight_bits(profile: bytes, dtype: str) -> None:
    values = levels(3, 4, 4)
    data = tagged(values, b"iCCP", b"x\0\0" + zlib.compress(profile))
    found = read(data)
    assert found.dtype == dtype
    if dtype == "uint8":
        assert np.array_equal(found, to_pixels(decode(data)))
        assert read(data, numbers="uint16").dtype == np.uint16


def save(folder: Path, kinds: str) -> Path:
    """Files a, b, ...: `1` grey of 16 bits, `3` colour of 16 bits, `8` grey of 8 bits."""
    folder.mkdir()
    for k, kind in enumerate(kinds):
        values = levels(3 if kind == "3" else 1, 6, 6)
        data = png(rescaled(values, "uint8") if kind == "8" else values)
        (folder / f"{k:03d}.png").write_bytes(data)
    return folder


def gathered(folder: Path, **options: Any) -> tuple[Samples, list[str]]:
    notices = []
    work = read_images(folder, **options)
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value, notices
        if isinstance(event, Notice):
            notices.append(event.text)


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
def test_a_set_has_the_bits_that_all_its_images_have(
    kinds: str, bits: int | None, dtype: str, channels: int, tmp_path: Path
) -> None:
    folder = save(tmp_path / "data", kinds)
    found, notices = gathered(folder, bits=bits)
    assert (found.stored.dtype.name, found.stored.shape[1]) == (dtype, channels)
    lost = dtype == "uint8" and bits is None
    assert any("have 16 bits, and become 8" in text for text in notices) == lost
    # A model of these levels reads the same numbers, and knows them as the same set.
    again, _ = gathered(folder, numbers=dtype, size=(6, 6), channels=channels)
    assert np.array_equal(again.stored, found.stored)
    assert again.fingerprint == found.fingerprint


def test_a_set_in_a_file_has_them_too(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", "1181")
    kept = finish(read_images(folder, cache=tmp_path / "cache"))
    assert np.array_equal(kept.stored, finish(read_images(folder)).stored)


def test_pictures_of_sixteen_bits_are_those_of_eight() -> None:
    values = levels(2, 3, 4, 4)
    space = image.space(values)
    assert np.array_equal(image.look(values, space), np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(image.look(values.astype(np.int32), space), image.look(values, space))
