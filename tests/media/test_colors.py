"""Embedded ICC profiles: which are converted, how exactly, and what becomes of broken ones."""

import io
import random
import struct

import icc_profiles
import numpy as np
import pytest
from image_corpus import chunk, decode, encoded, noise
from mutated_images import CHANGES
from PIL import Image, ImageCms

from diffuse_cli.media import ReadSettings, image
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.image import image_metadata
from diffuse_cli.media.image.decoding import decode_image

WHITE = (255, 255, 255)
BUILT_IN = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE = [("AdobeRGB", 563 / 256), ("P3", "sRGB"), ("ProPhoto", 1.8), ("sRGB", 2.2)]


def remarks(data: bytes) -> tuple[str, ...]:
    return decode_image(data, WHITE).remarks


def off(found, expected):
    return float(np.abs(np.asarray(found, float) - np.asarray(expected, float)).max())


@pytest.mark.parametrize(("name", "gamma"), WIDE)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colors_become_srgb(kind, name, gamma):
    colors = noise(1, (40, 30), "RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(colors, kind, icc_profile=icc_profiles.rgb(name, gamma), **options)
    expected = icc_profiles.converted(np.asarray(colors), name, gamma)
    assert off(colors, expected) > 5
    assert off(decode(data), expected) < 4  # LittleCMS computes 8-bit pixels in whole numbers
    assert np.abs(np.asarray(decode(data)) - expected).mean() < 0.5
    assert remarks(data) == ()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "palette"])
def test_lossy_files_and_palettes_have_profiles_too(kind):
    flat = Image.new("RGB", (16, 16), (30, 200, 90))
    profile, options = icc_profiles.rgb("AdobeRGB", 2.2), {"quality": 100}
    if kind == "palette":
        flat, kind, options = flat.quantize(4), "PNG", {}
    data = encoded(flat, kind, icc_profile=profile, **options)
    expected = icc_profiles.converted(np.array([30.0, 200, 90]), "AdobeRGB", 2.2)
    assert off(decode(data), expected) < 6


@pytest.mark.parametrize("profile", [BUILT_IN, icc_profiles.rgb("sRGB", "sRGB")])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_srgb_stays_as_it_is(mode, profile):
    colors = noise(2, (40, 30), mode)
    plain, tagged = (encoded(colors, icc_profile=p) for p in (None, profile))
    assert tagged != plain
    assert decode_image(tagged, WHITE).to_srgb is None
    one, two = (image.read(data, ReadSettings()) for data in (plain, tagged))
    assert one.values.tolist() == two.values.tolist()
    assert (one.digest, one.remarks) == (two.digest, two.remarks)


def test_grey_is_mapped_and_stays_grey():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = Image.fromarray(ramp.astype(np.uint16) * 257)
    expected = icc_profiles.srgb(icc_profiles.linear(ramp / 255, 1.8))
    assert off(ramp, expected) > 5
    for picture in (Image.fromarray(ramp), wide, Image.fromarray(ramp).convert("P")):
        for profile in (icc_profiles.grey(1.8), icc_profiles.rgb("P3", 1.8)):
            made = decode(encoded(picture, icc_profile=profile))
            assert made.mode == "L"
            assert off(made, expected) < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_converted_and_the_background_is_not(mode):
    pixels = np.asarray(noise(4, (9, 9), mode)).copy()
    pixels[..., -1] = 255 * (np.arange(9) % 2)
    profile = icc_profiles.rgb("AdobeRGB", 2.2) if mode == "RGBA" else icc_profiles.grey(1.8)
    made = np.asarray(decode(encoded(Image.fromarray(pixels), icc_profile=profile), "#204060"))
    assert (made[:, ::2] == (0x20, 0x40, 0x60)).all()
    shown = np.asarray(Image.fromarray(pixels).convert("RGB"))[:, 1::2]
    grey, color = icc_profiles.linear(shown / 255, 1.8), (shown, "AdobeRGB", 2.2)
    expected = icc_profiles.converted(*color) if mode == "RGBA" else icc_profiles.srgb(grey)
    assert off(made[:, 1::2], expected) < (4 if mode == "RGBA" else 2)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_ink_is_what_its_profile_says(kind):
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (255, 255, 0, 0), (255, 255, 255, 0), (0, 0, 0, 255)]
    for ink in inks:
        flat = Image.new("CMYK", (8, 8), ink)
        options = {"quality": 100} if kind == "JPEG" else {}
        made = decode(encoded(flat, kind, icc_profile=icc_profiles.cmyk(), **options))
        light = icc_profiles.lightness(np.array(ink) / 255)
        luminance = ((light + 16) / 116) ** 3 if light > 8 else light / 903.3
        assert made.mode == "RGB"
        assert off(made, icc_profiles.srgb(np.array(luminance))) <= 2, ink


# -- broken ones ----------------------------------------------------------------------------------

P3 = icc_profiles.rgb("P3", "sRGB")
BROKEN = {
    "cut": P3[:300],
    "rubbish": b"rubbish " * 40,
    "tiny": b"x",
    "of ink": icc_profiles.cmyk(),
    "of grey": icc_profiles.grey(2.2),
    "a list of names": P3[:12] + b"nmcl" + P3[16:],
    "a link": P3[:12] + b"link" + P3[16:],
    "without curves": P3.replace(b"rTRC", b"xTRC"),
    "large": P3 + bytes(image_metadata.LARGEST),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_profile_is_ignored_and_named(name):
    colors = noise(5, (9, 9), "RGB")
    for kind in ("PNG", "TIFF", "WEBP"):
        if kind == "PNG" and name == "large":
            continue  # Pillow refuses a chunk that unpacks to more than a MiB
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(colors, kind, icc_profile=BROKEN[name], **options)
        assert decode(data).tobytes() == colors.tobytes()
        assert remarks(data) == (reasons.PROFILE,)


def test_profiles_that_do_not_fit_or_cannot_be_put_together_are_named():
    colors = noise(5, (9, 9), "RGB")
    header, rest = encoded(colors)[:33], encoded(colors)[33:]
    torn = header + chunk(b"iCCP", b"x\0\0not zlib") + rest
    jpeg = encoded(colors, "JPEG")
    part = b"ICC_PROFILE\0\1\2" + P3[:200]  # the first of two
    lost = jpeg[:2] + b"\xff\xe2" + (len(part) + 2).to_bytes(2, "big") + part + jpeg[2:]
    grey, ink = noise(5), colors.convert("CMYK")
    for data, plain in (
        (torn, header + rest),
        (lost, jpeg),
        (encoded(grey, icc_profile=icc_profiles.cmyk()), encoded(grey)),
        (encoded(ink, "TIFF", icc_profile=BROKEN["rubbish"]), encoded(ink, "TIFF")),
    ):
        assert decode(data).tobytes() == decode(plain).tobytes()
        assert remarks(data) == (reasons.PROFILE,)


@pytest.mark.parametrize(
    "tag",
    [
        b"mft1\0\0\0\0\3\3\x60\0",
        b"mft2\0\0\0\0\4\3\x50\0",
        b"mAB \0\0\0\0\3\3\0\0" + struct.pack(">5I", 0, 0, 0, 32, 0) + bytes([90] * 3 + [0] * 17),
        b"mpet\0\0\0\0\0\3\0\3",
    ],
)
def test_a_profile_that_claims_large_tables_is_not_opened(tag, monkeypatch):
    profile = icc_profiles.assembled(b"RGB ", b"Lab ", {b"A2B0": tag})
    monkeypatch.setattr(ImageCms, "ImageCmsTransform", lambda *a, **o: pytest.fail("opened"))
    data = encoded(noise(5, mode="RGB"), icc_profile=profile)
    assert remarks(data) == (reasons.PROFILE,)


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
def test_changed_profiles_convert_or_are_broken_and_nothing_else(kind):
    rng = random.Random(kind)
    seeds = (P3, BUILT_IN, icc_profiles.grey(1.8), icc_profiles.cmyk())
    pixels = noise(7, (8, 8), "RGB").convert(kind)
    outcomes = set()
    for _ in range(600):
        profile = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 3))):
            profile = rng.choice(CHANGES[:4])(rng, profile)
        try:
            convert = image_metadata.load_conversion(profile, kind)
        except image_metadata.BadProfile:
            outcomes.add("broken")
            continue
        made = convert(pixels) if convert else pixels
        outcomes.add(made.mode)
        assert (made.mode, made.size) in ((kind, (8, 8)), ("RGB", (8, 8)))
    assert len(outcomes) >= 2


# -- as a medium reads ----------------------------------------------------------------------------


def test_a_photo_is_converted_when_it_is_small():
    draw = np.random.default_rng(8)
    wave = np.sin(np.linspace(0, 9, 400))[:, None, None] * np.linspace(0.2, 1, 600)[None, :, None]
    pixels = (128 + 40 * wave * [1, -0.5, 0.7] + draw.normal(0, 4, (400, 600, 3))).clip(0, 255)
    photo = Image.fromarray(pixels.astype(np.uint8))
    data = encoded(photo, icc_profile=P3)
    first = image.read(encoded(decode(data)), ReadSettings(size=(48, 48)))
    found = image.read(data, ReadSettings(size=(48, 48)))
    assert off(found.values, first.values) <= 3
    assert np.abs(found.values.astype(int) - first.values).mean() < 0.5
    assert off(found.values, image.read(encoded(photo), ReadSettings(size=(48, 48))).values) > 5


def test_channels_and_padding_come_after_the_colors():
    colors = noise(9, (20, 10), "RGB")
    data = encoded(colors, icc_profile=icc_profiles.rgb("AdobeRGB", 2.2))
    grey = image.read(data, ReadSettings(channels=1)).values[0]
    assert grey.tolist() == np.asarray(decode(data).convert("L")).tolist()
    padded = image.read(data, ReadSettings((20, 20), None, (0, 255, 9), "pad")).values
    assert padded[:, 0, 0].tolist() == [0, 255, 9]
    assert padded[:, 5:15].tolist() == np.moveaxis(np.asarray(decode(data)), -1, 0).tolist()


def test_an_image_is_another_one_under_another_profile():
    colors = noise(10, (80, 70), "RGB")
    plain = encoded(colors)
    p3, adobe = (encoded(colors, icc_profile=p) for p in (P3, icc_profiles.rgb("AdobeRGB", 2.2)))
    assert len({image.read(data, ReadSettings()).digest for data in (plain, p3, adobe)}) == 3
    assert image.read(p3, ReadSettings()).digest == image.read(p3, ReadSettings(size=(5, 5))).digest


# -- blank ones -----------------------------------------------------------------------------------


def drawing(color: int, mode: str = "LA") -> bytes:
    """A soft disc on nothing."""
    y, x = np.mgrid[:16, :16] - 7.5
    alpha = ((6 - np.hypot(x, y)).clip(0, 1) * 255).astype(np.uint8)
    whole = Image.merge("LA", (Image.new("L", (16, 16), color), Image.fromarray(alpha)))
    return encoded(whole.convert(mode), transparency=0) if mode == "P" else encoded(whole)


@pytest.mark.parametrize(
    ("color", "background", "blank"),
    [(255, WHITE, True), (250, WHITE, True), (230, WHITE, False), (255, (0, 0, 0), False),
     (0, (0, 0, 0), True), (0, WHITE, False)],
)  # fmt: skip
def test_white_on_nothing_is_blank_on_white(color, background, blank):
    expected = (reasons.BLANK,) if blank else ()
    assert decode_image(drawing(color), background).remarks == expected
    broken = encoded(Image.open(io.BytesIO(drawing(color))), icc_profile=BROKEN["rubbish"])
    assert decode_image(broken, background).remarks == (reasons.PROFILE, *expected)
    for alpha in (0, 128, 255):  # of one color
        flat = Image.new("RGBA", (9, 9), (color, color, color, alpha))
        assert decode_image(encoded(flat), background).remarks == ()
