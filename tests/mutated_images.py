"""Image files changed at random, everything drawn from one generator: equal seeds, equal files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

from image_corpus import encoded, noise
from odd_files import odd
from PIL import Image

EXTREMES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 2**32 - 1)
NUMBERS = (">B", "<H", ">H", "<L", ">L")
HEADER = 64
"""The first bytes, where what is changed changes most."""


@cache
def seeds() -> tuple[bytes, ...]:
    """What is changed: small images of every kind, and larger ones that take several reads."""
    color = noise(1, (90, 70), "RGB")
    flat = Image.new("RGB", (700, 500), "teal")
    tiffs = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd")
    large = [encoded(color, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]
    large += [encoded(color, "TIFF", compression=name) for name in tiffs]
    large += [encoded(flat, "PNG"), encoded(flat, "JPEG", progressive=True)]
    return (*odd().values(), *large)


def place(rng: Random, data: bytes) -> int:
    """Somewhere in the file, in every other case in its header."""
    end = min(len(data), HEADER) if rng.random() < 0.5 else len(data)
    return rng.randrange(end) if end else 0


def stretch(rng: Random, data: bytes) -> tuple[int, int]:
    """From where to where: few bytes, or many."""
    start = place(rng, data)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 12)))


# -- whatever the format --------------------------------------------------------------------------


def flip(rng: Random, data: bytes) -> bytes:
    """Some bytes are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16)) if data else 0):
        changed[place(rng, data)] = rng.randrange(256)
    return bytes(changed)


def cut(rng: Random, data: bytes) -> bytes:
    """The end is missing."""
    return data[: rng.randrange(len(data) + 1)]


def remove(rng: Random, data: bytes) -> bytes:
    """A stretch is missing."""
    start, end = stretch(rng, data)
    return data[:start] + data[end:]


def insert(rng: Random, data: bytes) -> bytes:
    """A stretch is there once more, or noise of its length."""
    start, end = stretch(rng, data)
    more = data[start:end] if rng.random() < 0.5 else rng.randbytes(end - start)
    at = place(rng, data)
    return data[:at] + more * rng.choice((1, 1, 2, 50)) + data[at:]


def splice(rng: Random, data: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(seeds())
    return data[: place(rng, data)] + other[place(rng, other) :]


def extreme(rng: Random, data: bytes) -> bytes:
    """A number that is as large, as small or as negative as it can be."""
    form = rng.choice(NUMBERS)
    size = struct.calcsize(form)
    at = place(rng, data)
    number = struct.pack(form, rng.choice(EXTREMES) % 256**size)
    return data[:at] + number + data[at + size :]


# -- by the format, so that more of a decoder is reached ------------------------------------------


def png_chunks(rng: Random, data: bytes) -> bytes:
    """A PNG whose chunks are moved, doubled, dropped or changed, with the right checksums."""
    at, chunks = 8, []
    while at + 12 <= len(data) and len(chunks) < 1000:
        (size,) = struct.unpack_from(">L", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not data.startswith(b"\x89PNG") or not chunks:
        return flip(rng, data)
    k = rng.randrange(len(chunks))
    name, body = chunks[k]
    act = rng.randrange(6)
    if act == 0:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[k])
    elif act == 1:
        del chunks[k]
    elif act == 2:
        names = (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT")
        chunks.insert(k, (rng.choice(names), rng.randbytes(rng.randrange(40))))
    elif act == 3 and name == b"IDAT":
        chunks[k] = name, zlib.compress(flip(rng, _unpacked(body)), 1)
    else:
        chunks[k] = name, rng.choice((flip, extreme, cut, insert))(rng, body)
    return data[:8] + b"".join(
        struct.pack(">L", len(b)) + n + b + struct.pack(">L", zlib.crc32(n + b)) for n, b in chunks
    )


def _unpacked(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, 2**20)
    except zlib.error:
        return body


def jpeg_segments(rng: Random, data: bytes) -> bytes:
    """A JPEG with a segment that is doubled, dropped, changed, or of another kind."""
    at, segments = 2, []
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and len(segments) < 1000:
        (size,) = struct.unpack_from(">H", data, at + 2)
        segments.append(data[at : at + 2 + size])
        at += 2 + size
        if segments[-1][1] == 0xDA:
            break
    if not data.startswith(b"\xff\xd8") or not segments:
        return flip(rng, data)
    k = rng.randrange(len(segments))
    body = rng.choice((flip, extreme, cut, insert))(rng, segments[k][4:])[:65_000]
    marker = segments[k][:2] if rng.random() < 0.8 else bytes((0xFF, rng.randrange(0xC0, 0xFF)))
    changed = marker + struct.pack(">H", len(body) + 2) + body
    segments[k : k + 1] = rng.choice(([], [changed], [segments[k], changed], [segments[k]] * 2))
    return data[:2] + b"".join(segments) + data[at:]


def tiff_tags(rng: Random, data: bytes) -> bytes:
    """A TIFF with a tag of another number, type, count or value."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order or len(data) < 8:
        return flip(rng, data)
    (start,) = struct.unpack_from(order + "L", data, 4)
    if start + 2 > len(data):
        return flip(rng, data)
    (count,) = struct.unpack_from(order + "H", data, start)
    at = start + 2 + 12 * rng.randrange(max(1, min(count, 40)))
    if at + 12 > len(data):
        return flip(rng, data)
    number, typ, many, value = struct.unpack_from(order + "HHLL", data, at)
    act = rng.randrange(4)
    if act == 0:
        number = rng.choice((256, 257, 258, 259, 262, 273, 277, 278, 284, 320, 322, 323, 324, 338))
    elif act == 1:
        typ = rng.randrange(20)
    elif act == 2:
        many = rng.choice(EXTREMES)
    else:
        value = rng.choice(EXTREMES)
    return data[:at] + struct.pack(order + "HHLL", number, typ, many, value) + data[at + 12 :]


Change = Callable[[Random, bytes], bytes]
CHANGES: tuple[Change, ...] = (flip, cut, remove, insert, splice, extreme)
BY_FORMAT: tuple[tuple[bytes, Change], ...] = (
    (b"\x89PNG", png_chunks),
    (b"\xff\xd8", jpeg_segments),
    (b"II", tiff_tags),
    (b"MM", tiff_tags),
)


def mutated(rng: Random) -> bytes:
    """A file that was an image before one to four changes."""
    data = rng.choice(seeds())
    for _ in range(rng.choice((1, 1, 2, 4))):
        own = [change for start, change in BY_FORMAT if data.startswith(start)]
        changes = own if own and rng.random() < 0.5 else CHANGES
        data = rng.choice(changes)(rng, data)[: 2**20]
    return data
