"""Which files are images, and every reason why one may not be usable."""

from __future__ import annotations

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"))

# Why a file is skipped: every reason there is.
EMPTY = "empty file"
NOT_AN_IMAGE = "not an image"
OTHER_FORMAT = "unsupported format"
CORRUPT = "truncated or corrupt"
BOMB = "decompression bomb"
PIXELS = "unsupported pixels"
UNREADABLE = "unreadable"
VANISHED = "vanished"
IRREGULAR = "not a regular file"
ENCRYPTED = "encrypted"
COMPRESSION = "unsupported compression"
TOO_LARGE = "over 512 MiB"
MEMORY = "out of memory"

LARGEST_FILE = 512 * 2**20

# First bytes of files that Pillow did not open: broken ones of our formats, and other formats.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", CORRUPT),
    (0, b"\xff\xd8\xff", CORRUPT),
    (8, b"WEBP", CORRUPT),
    (0, b"GIF8", CORRUPT),
    (0, b"II*\0", CORRUPT),
    (0, b"MM\0*", CORRUPT),
    (0, b"BM", CORRUPT),
    (0, b"%!PS", OTHER_FORMAT),
    (0, b"\xc5\xd0\xd3\xc6", OTHER_FORMAT),  # EPS with a preview
    (0, b"%PDF", OTHER_FORMAT),
    (0, b"<svg", OTHER_FORMAT),
    (0, b"<?xml", OTHER_FORMAT),
    (0, b"8BPS", OTHER_FORMAT),  # PSD
    (0, b"\0\0\1\0", OTHER_FORMAT),  # ICO
    (0, b"icns", OTHER_FORMAT),
    (0, b"qoif", OTHER_FORMAT),
    (0, b"DDS ", OTHER_FORMAT),
    (0, b"v/1\x01", OTHER_FORMAT),  # OpenEXR
    (0, b"gimp xcf", OTHER_FORMAT),
    (0, b"\xd7\xcd\xc6\x9a", OTHER_FORMAT),  # WMF
    (0, b"\xff\x0a", OTHER_FORMAT),  # JPEG XL
    (4, b"JXL ", OTHER_FORMAT),
    (4, b"jP  ", OTHER_FORMAT),  # JPEG 2000
    (4, b"ftyp", OTHER_FORMAT),  # HEIC, AVIF
    *((0, b"P%d" % n, OTHER_FORMAT) for n in range(1, 8)),  # netpbm
)


class Unusable(Exception):
    """A file that holds no usable image; `reason` is one of the constants above."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(data: bytes) -> str:
    """Why Pillow opened nothing in `data`, from its first bytes."""
    for start, signature, reason in _SIGNATURES:
        if data.startswith(signature, start):
            return reason
    return NOT_AN_IMAGE
