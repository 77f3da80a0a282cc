"""Every reason why a file holds no usable sample, and what is wrong with some that do."""

from __future__ import annotations

EMPTY = "empty file"
NOT_AN_IMAGE = "not an image"
OTHER_FORMAT = "unsupported format"
CORRUPT = "truncated or corrupt"
BOMB = "decompression bomb"
PIXELS = "unsupported pixels"
FLOATS = "32-bit floats among images; by themselves they are read as arrays"
UNREADABLE = "unreadable"
VANISHED = "vanished"
CHANGED = "changed since it was listed"
IRREGULAR = "not a regular file"
ENCRYPTED = "encrypted"
COMPRESSION = "unsupported compression"
TOO_LARGE = "over 512 MiB"
MEMORY = "out of memory"

NOT_AN_ARRAY = "not an array"
OBJECTS = "Python objects, which are not read"
COMPLEX = "complex numbers; save real and imaginary part as two channels"
NUMBERS = "not numbers"
MISSING = "NaN or infinite numbers"
RANGE = "numbers beyond the range of 32-bit floats"
OTHER_NUMBERS = "other numbers than the model's"
AXES = "not one to four axes"
AXES_OF_SIZE = "another number of axes than --size"
LAYOUT = "other axes than the layout's"
MANY_CHANNELS = "over 64 channels; --layout says which axis they are"
SHAPE = "another shape than the first; --size cuts all to one"
SMALL = "smaller than the size; type a smaller --size"
CHANNELS = "another number of channels"
NO_SAMPLES = "no column of files"
PAGES = "pages in colour or of several sizes"
MANY_PAGES = "over 64 pages"
MEMBERS = "a .npz of {}, not of one array"

NOT_A_SOUND = "not a sound"
SOUNDLESS = "a sound without samples"
SPEAKERS = "over two channels"
RATE = "a rate that is not of 1,000 to 384,000 Hz"
LONG = "over 33,554,432 numbers; cut it into parts"
LONGER = "longer than the size; --fit crop cuts it"

PROFILE = "broken colour profile, which is ignored"
BLANK = "blank on the background"
SILENT = "silent"
CLIPPED = "clipped: cut off at full scale"

LARGEST_FILE = 512 * 2**20


class Unusable(Exception):
    """A file without a usable sample; `reason` is one of the constants above, printable."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
