"""Every reason why a file holds no usable sample, and what is wrong with some that do."""

from __future__ import annotations

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

PROFILE = "broken colour profile, which is ignored"
BLANK = "blank on the background"

LARGEST_FILE = 512 * 2**20


class Unusable(Exception):
    """A file without a usable sample; `reason` is one of the constants above."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
