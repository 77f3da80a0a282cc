"""Files of every kind that folders of images hold: odd ones that are images, and rubbish."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from functools import cache
from pathlib import Path

import icc_profiles
import numpy as np
from image_corpus import chunk, encoded, fill, noise, png
from PIL import Image

from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.image.image_metadata import FORMATS

PROFILED = [kind for kind in FORMATS if kind not in ("BMP", "GIF")]
"""Formats that hold color profiles."""

LARGE, SIDE = 50_000, 9500
"""A square of the one is far over the most pixels that an image may have, of the other just so."""

Tag = tuple[int, int, list[int]]
"""Number, type (3 for values of 16 bits, 4 for 32) and values; -1 is where the body starts."""


def zeros(count: int) -> bytes:
    """So many zeros, compressed by zlib: a block of a mebibyte again and again."""
    full, end = (zlib.compressobj(9, wbits=-zlib.MAX_WBITS) for _ in range(2))
    block = full.compress(bytes(2**20)) + full.flush(zlib.Z_FULL_FLUSH)
    last = end.compress(bytes(count % 2**20)) + end.flush()
    checksum = count % 65521 << 16 | 1  # Adler-32
    return b"\x78\xda" + block * (count // 2**20) + last + checksum.to_bytes(4, "big")


def tiff(tags: list[Tag], body: bytes = b"", after: int = 0) -> bytes:
    """A little-endian TIFF; its directory is at 8, the next one at `after`."""
    size = {3: 2, 4: 4}
    lengths = [size[typ] * len(values) for _, typ, values in tags]
    outside = 8 + 2 + 12 * len(tags) + 4
    start = outside + sum(n for n in lengths if n > 4)
    entries, data = struct.pack("<H", len(tags)), b""
    for number, typ, values in sorted(tags):
        placed = [start if v == -1 else v for v in values]
        packed = struct.pack(f"<{len(placed)}{'H' if typ == 3 else 'L'}", *placed)
        if len(packed) > 4:
            packed, data = struct.pack("<L", outside + len(data)), data + packed
        entries += struct.pack("<HHL", number, typ, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + entries + struct.pack("<L", after) + data + body


def grey(width: int, height: int, compression: int, *more: Tag) -> list[Tag]:
    """The tags of a grey TIFF; compression 1 is none, 8 zlib's."""
    size = [(256, 4, [width]), (257, 4, [height])]
    return [*size, (258, 3, [8]), (259, 3, [compression]), (262, 3, [1]), (277, 3, [1]), *more]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of chunks."""
    parts = [name + struct.pack("<L", len(d)) + d + b"\0" * (len(d) % 2) for name, d in chunks]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def enlarged(data: bytes, form: str, first: int, second: int) -> bytes:
    """The file with the numbers of its size, which it has once, made `LARGE`."""
    old, new = struct.pack(form, first, second), struct.pack(form, LARGE, LARGE)
    assert data.count(old) == 1
    return data.replace(old, new)


@cache
def odd() -> dict[str, bytes]:
    """Images, all of them usable."""
    pale, color = noise(4, (8, 8)), noise(5, (8, 8), "RGB")
    frames = [noise(seed, (8, 8), "RGB") for seed in (6, 7, 8)]
    several = {"save_all": True, "append_images": frames[1:], "duration": 50}
    wide = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    turned = Image.Exif()
    turned[0x0112] = 6
    strip = [(273, 4, [-1]), (278, 4, [8]), (279, 4, [64])]
    p3 = icc_profiles.rgb("P3", "sRGB")
    files = {f"{kind}.{kind.lower()}": encoded(color, kind) for kind in FORMATS}
    files |= {f"grey-{kind}.{kind.lower()}": encoded(pale, kind) for kind in FORMATS}
    files |= {
        f"frames-{kind}.{kind.lower()}": encoded(frames[0], kind, **several)
        for kind in ("PNG", "GIF", "WEBP", "TIFF")
    }
    return files | {
        "mpo.jpg": encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encoded(color.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(color.convert("CMYK"), "TIFF"),
        "progressive.jpg": encoded(color, "JPEG", progressive=True),
        "bits.png": encoded(pale.convert("1")),
        "bits.tif": encoded(pale.convert("1"), "TIFF", compression="group4"),
        "wide.png": encoded(wide),
        "wide.tif": encoded(wide, "TIFF"),
        "palette.png": encoded(color.quantize(7)),
        "clear-palette.png": encoded(color.quantize(7), transparency=3),
        "clear.png": encoded(noise(9, (8, 8), "RGBA")),
        "clear-grey.png": encoded(noise(9, (8, 8), "LA")),
        "clear.webp": encoded(noise(9, (8, 8), "RGBA"), "WEBP", lossless=True),
        "turned.jpg": encoded(noise(10, (5, 9), "RGB"), "JPEG", exif=turned),
        **{f"p3.{kind.lower()}": encoded(color, kind, icc_profile=p3) for kind in PROFILED},
        "gamma.png": encoded(pale, icc_profile=icc_profiles.grey(1.8)),
        "ink.tif": encoded(color.convert("CMYK"), "TIFF", icc_profile=icc_profiles.cmyk()),
        # Four inks at 80 levels each would be 245 MB.
        "ink-that-unpacks.tif": encoded(
            color.convert("CMYK"),
            "TIFF",
            icc_profile=icc_profiles.cmyk().replace(b"\4\3\2\0", b"\4\3\x50\0"),
        ),
        "cut-profile.png": encoded(color, icc_profile=p3[:300]),
        "name-says-gif.gif": encoded(pale),
        "more-after-the-end.png": encoded(pale) + b"more",
        "directory-that-follows-itself.tif": tiff(grey(8, 8, 1, *strip), bytes(64), after=8),
        "far-exif.png": png(8, 8, 8, 0, bytes(72), chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
        "no-exif.png": png(8, 8, 8, 0, bytes(72), chunk(b"eXIf", b"not EXIF")),
    }


@cache
def bombs() -> dict[str, bytes]:
    """Small files that would be large images, or much work."""
    small = {kind: encoded(noise(1, (37, 41)), kind) for kind in FORMATS}
    header, end = png(SIDE, SIDE, 8, 6, b"")[:33], chunk(b"IEND", b"")
    place, huge_place = b",\0\0\0\0%\0)\0", b",\0\0\0\0\xff\xff\xff\xff"
    canvas = bytes(4) + 2 * (LARGE - 1).to_bytes(3, "little")
    side, tile = 12_000, zeros(12_000**2)
    tiles = [(322, 4, [side]), (323, 4, [side]), (324, 4, [-1]), (325, 4, [len(tile)])]
    strips = [(273, 4, [-1] * 9000), (278, 4, [33]), (279, 4, [4096] * 9000)]
    scans = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    return {
        "header.png": png(LARGE, LARGE, 8, 2, bytes(100)),
        "header.jpg": enlarged(small["JPEG"], ">HH", 41, 37),
        "header.gif": enlarged(small["GIF"][:10], "<HH", 37, 41) + small["GIF"][10:],
        "header.bmp": enlarged(small["BMP"], "<LL", 37, 41),
        "header.tif": tiff(grey(LARGE, LARGE, 8, (273, 4, [-1]), (279, 4, [9])), bytes(9)),
        "header.webp": riff((b"VP8X", canvas), (b"VP8L", small["WEBP"][20:])),
        "frame.gif": small["GIF"].replace(place, huge_place),
        "just-over.png": header + chunk(b"IDAT", zeros(SIDE * (4 * SIDE + 1))) + end,
        "tall.png": png(1, 2**20 + 1, 8, 0, b"\0\0" * (2**20 + 1)),
        "tile.tif": tiff(grey(64, 64, 8, *tiles), tile),
        "strips.tif": tiff(grey(64, 64, 1, *strips), bytes(4096)),
        "scans.jpg": scans[:-2] + last * 1500 + b"\xff\xd9",
    }


@cache
def broken() -> dict[str, bytes]:
    """Files of our formats that are cut or damaged."""
    image = noise(1, (40, 40), "RGB")
    whole = {kind: encoded(image, kind) for kind in FORMATS}
    header, end = whole["PNG"][:33], chunk(b"IEND", b"")
    strip = [(273, 4, [2**31]), (279, 4, [2**31])]
    files = {
        f"cut-at-{k}-of-8.{kind.lower()}": data[: len(data) * k // 8]
        for kind, data in whole.items()
        for k in range(1, 8)
    }
    files |= {
        f"{name}.tif": flipped(encoded(image, "TIFF", compression=name), 20, 60)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")  # libtiff says what it dislikes
    }
    return files | {
        "flipped.png": flipped(whole["PNG"], len(whole["PNG"]) // 2),
        "no-pixels.png": header + end,
        "ends-in-nothing.png": header,
        "profile-that-unpacks.png": header + chunk(b"iCCP", b"x\0\0" + zeros(2**26)) + end,
        "text-that-unpacks.png": header + chunk(b"zTXt", b"x\0\0" + zeros(2**26)) + end,
        "no-frames.gif": b"GIF89a\x08\0\x08\0\x80\0\0" + bytes(6) + b";",
        "no-size.tif": tiff([(258, 3, [8]), (259, 3, [1])]),
        "no-width.tif": tiff(grey(0, 8, 1, (273, 4, [-1])), bytes(64)),
        "many-samples.tif": tiff([*grey(8, 8, 1, (273, 4, [-1]))[:-2], (277, 3, [60_000])]),
        "directory-beyond-the-end.tif": b"II*\0\xff\xff\xff\x7f",
        "strips-beyond-the-end.tif": tiff(grey(8, 8, 1, *strip)),
        "two-tile-widths.tif": tiff(grey(8, 8, 8, (322, 3, [16, 16]), (324, 4, [-1])), bytes(9)),
        "no-image.webp": riff((b"VP8X", bytes(10))),
        "no-palette.bmp": encoded(Image.new("P", (8, 8)), "BMP")[:60],
        "no-marker.jpg": b"\xff\xd8\xff\xe0\xff",
        "no-scan.jpg": whole["JPEG"][: whole["JPEG"].index(b"\xff\xda")],
    }


def flipped(data: bytes, *places: int) -> bytes:
    """The file with the bits of some of its bytes turned."""
    changed = bytearray(data)
    for at in places:
        changed[at] ^= 255
    return bytes(changed)


def rubbish() -> dict[str, tuple[bytes, str]]:
    """Files without a usable image, with the reason that each is skipped for."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    others = {
        "eps.png": eps,
        "eps.jpg": eps,
        "pdf.png": b"%PDF-1.7\n",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "ppm.png": b"P6 1 1 255\n\0\0\0",
        "heic.jpg": b"\0\0\0\x18ftypheic",
        "ico.png": encoded(noise(4, (16, 16)), "ICO"),
    }
    texts = {"text.png": b"hello", "zeros.png": bytes(1000), "half-a-signature.png": b"\x89P"}
    files = {name: (data, reasons.BOMB) for name, data in bombs().items()}
    files |= {name: (data, reasons.CORRUPT) for name, data in broken().items()}
    files |= {name: (data, reasons.OTHER_FORMAT) for name, data in others.items()}
    files |= {name: (data, reasons.NOT_AN_IMAGE) for name, data in texts.items()}
    return files | {
        "empty.png": (b"", reasons.EMPTY),
        "float.tif": (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), reasons.FLOATS),
    }


def place_special(folder: Path) -> dict[str, str]:
    """What is no file at all; the reasons that each is skipped for."""
    os.mkfifo(folder / "fifo.png")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)
    links = {"device.png": "/dev/zero", "loop.png": "loop.png", "gone.png": "nowhere.png"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "folders-in-a-circle").symlink_to(folder)
    found = dict.fromkeys(("device.png", "fifo.png", "socket.png"), reasons.IRREGULAR)
    return found | {"loop.png": reasons.UNREADABLE, "gone.png": reasons.VANISHED}


def place(folder: Path) -> dict[str, str]:
    """All of it in `folder`, and a folder that is named as an image; the reasons, by name."""
    files = rubbish()
    fill(folder, {name: data for name, (data, _) in files.items()})
    fill(folder, odd() | {"folder.png/within.png": encoded(noise(3))})
    return {name: reason for name, (_, reason) in files.items()} | place_special(folder)
