"""Reasons why a file holds no usable sample, flaws of usable samples, and advice for both."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from diffuse_cli.system import DataError, is_out_of_memory, show

EMPTY = "empty file"
NOT_AN_IMAGE = "not an image"
OTHER_FORMAT = "unsupported format"
CORRUPT = "truncated or corrupt"
BOMB = "decompression bomb"
PIXELS = "unsupported pixels"
FLOATS = "32-bit floats among images; in a folder without images they are read as arrays"
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
MANY_CHANNELS = "over 64 channels; choose their axis with --layout"
SHAPE = "another shape than the first; pass --size to cut all to one"
SMALL = "smaller than the size; pass a smaller --size"
CHANNELS = "another number of channels"
NO_SAMPLES = "no column of files"
PAGES = "pages in color or of several sizes"
MANY_PAGES = "over 64 pages"
LABELS = "no label map: colors without a palette, or labels above 255"
ENHANCED = "an enhanced DICOM file, which dcm2niix can convert"
PALETTE = "indices of a color palette; dcmj2pnm can convert them to colors"
SLICES = "slices of several sizes, or with frames"
MEMBERS = "a .npz of {}, not of one array"

NOT_A_SOUND = "not a sound"
SOUNDLESS = "a sound without samples"
SPEAKERS = "over two channels"
RATE = "a rate outside 1,000 to 384,000 Hz"
LONG = "over 33,554,432 numbers; cut it into parts"
LONGER = "longer than the size; pass --fit crop to cut it"

PROFILE = "broken color profile, which is ignored"
DEPTH = "only 8 of 16 bits kept because of the color profile (convert to sRGB to keep 16)"
DEPTH_TIFF = "only 8 of 16 bits kept of color TIFFs (convert to PNG to keep 16)"
BLANK = "blank on the background"
SILENT = "silent"
CLIPPED = "clipped: cut off at full scale"

REPAIRS = {
    MISSING: "Replace them by other numbers, for example 0. inpaint --mask can generate them"
}
"""Hints by reason, where the right format is not what is missing."""

ERROR_CODES: Mapping[str, str] = {
    reason: code
    for code, reasons in {
        "data_unreadable": (
            EMPTY, NOT_AN_IMAGE, CORRUPT, UNREADABLE, NOT_AN_ARRAY, NOT_A_SOUND, SOUNDLESS,
        ),
        "data_changed": (VANISHED, CHANGED),
        "data_too_large": (BOMB, TOO_LARGE, MANY_PAGES, LONG),
        "data_mixed": (SHAPE,),
        "data_mismatch": (CHANNELS, OTHER_NUMBERS, AXES_OF_SIZE, SMALL, LONGER),
        "unusable_data": (MISSING, RANGE),
        "out_of_memory": (MEMORY,),
    }.items()
    for reason in reasons
}  # fmt: skip
"""Codes of errors by reason. Other reasons have `UNSUPPORTED`."""

UNSUPPORTED = "data_unsupported"

LARGEST_FILE = 512 * 2**20


class Unusable(Exception):
    """Raised for a file without a usable sample; `reason` is a constant of this module."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


LARGE = 2**24
"""Samples of more elements or bytes are read one at a time, which bounds the memory."""
_one_large = threading.RLock()


@contextlib.contextmanager
def lock_large(count: float) -> Iterator[None]:
    """Let only one thread at a time read a sample of more than `LARGE` elements or bytes."""
    with _one_large if count > LARGE else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def errors_as(reason: str) -> Iterator[None]:
    """Turn errors inside the block into `Unusable`."""
    try:
        yield
    except (Unusable, DataError):
        raise
    except Exception as error:
        raise Unusable(MEMORY if is_out_of_memory(error) else reason) from None


@contextlib.contextmanager
def require_usable(path: Path | str, hint: str = "", *, code: str = "") -> Iterator[None]:
    """Turn errors from a file that must be usable into a `DataError`, by default with the code of
    their reason."""
    try:
        yield
    except Unusable as error:
        if error.reason == MEMORY:
            raise MemoryError from error
        repair = REPAIRS.get(error.reason, hint)
        text = f"cannot use {show(path)}: {error.reason}"
        code = code or ERROR_CODES.get(error.reason, UNSUPPORTED)
        raise DataError(text, repair, code=code, path=path) from error
    except OSError as error:
        text = f"cannot read {show(path)}: {error.strerror}"
        raise DataError(text, hint, code=code or "data_unreadable", path=path) from error


def stat_of(path: Path, what: str, hint: str) -> os.stat_result:
    """Return the status of a path; `what` is the noun for its error.

    Raises:
        DataError: the path does not exist or cannot be read.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        text = f"no such {what}: {show(path)}"
        raise DataError(text, hint, code="data_missing", path=path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"cannot read {show(path)}: {reason}"
        raise DataError(text, hint, code="data_unreadable", path=path) from None


@contextlib.contextmanager
def read_required_file(path: Path, one: str, hint: str) -> Iterator[bytes]:
    """Read a file that must be a sample, `one` of a medium, and refuse it as `require_usable` does.

    Raises:
        DataError: the file does not exist, or the block raises `Unusable`.
    """
    with require_usable(path, hint):
        info = stat_of(path, one, hint)
        if stat.S_ISDIR(info.st_mode):
            text = f"no such {one}: {show(path)} is a folder"
            raise DataError(text, hint, code="data_missing", path=path)
        if not stat.S_ISREG(info.st_mode):
            raise Unusable(IRREGULAR)
        if info.st_size > LARGEST_FILE:
            raise Unusable(TOO_LARGE)
        yield path.read_bytes()


MOST_PACKED, LEAST_BYTES = 1100, 512
"""Largest ratio of values to the bytes of their file, because deflate reaches 1,032. A sample
counts at least some bytes."""


def check_count(count: int, size: int, file_size: int) -> None:
    """Refuse a file that declares no samples, or more of `size` bytes than it can hold."""
    if count * max(size, LEAST_BYTES) > MOST_PACKED * file_size:
        raise Unusable(BOMB)
    if not count * size:
        raise Unusable(EMPTY)


# Members of zip files, which declare their sizes.

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""With other methods, zipfile unpacks a whole member for any read."""

_AT_ONCE = 2**20


def member_fault(info: zipfile.ZipInfo) -> str:
    """Return why a member of a zip file is not read, or an empty string."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 0x1:
        return ENCRYPTED
    if info.file_size > LARGEST_FILE:
        return TOO_LARGE
    if info.compress_type not in _METHODS:
        return COMPRESSION
    return IRREGULAR if kind not in (0, stat.S_IFREG) else ""


def read_member(file: IO[bytes]) -> bytes:
    """Read an opened member. A single read would unpack more than its declared size."""
    return b"".join(iter(partial(file.read, _AT_ONCE), b""))


# Hints for files that are or contain images, and that no medium reads.


def extension_of(base: str) -> str:
    """Return `.png` for `a.PNG`. For a million names this is faster than `Path.suffix`."""
    stem, dot, extension = base.rpartition(".")
    if extension == "gz" and stem.endswith(".nii"):
        return ".nii.gz"
    return dot + extension.lower() if stem else ""


def strip_extension(name: str) -> str:
    """Return `a/b` for `a/b.PNG`."""
    return name[: len(name) - len(extension_of(name.rpartition("/")[2]))]


PRIVATE = (".dcm",)
"""Extensions of files whose names may be those of patients."""


def public_name(name: str) -> str:
    """Return the name of a file as it may be written, `*.dcm` for a private file."""
    extension = extension_of(name)
    return f"*{extension}" if extension in PRIVATE else name


_CONVERT = "convert them to JPEG or PNG, for example with magick mogrify -format jpg *{}"
_DEVELOP = "export them as JPEG or TIFF from a raw converter, for example darktable"
_EXPORT = "export them as PNG from the program that made them"
_FRAMES = "extract frames, for example with ffmpeg -i NAME{} -vf fps=1 NAME-%05d.png"
_RENDER = "render them as PNG, for example with rsvg-convert -w 512 NAME{0} -o NAME.png"
_PAGES = "render their pages as PNG, for example with pdftoppm -png NAME{0} NAME"
_PARQUET = (
    "save them as parquet, for example with "
    "datasets.load_from_disk('FOLDER').to_parquet('images.parquet')"
)
UNPACK = "unpack them"
ALONE = "pass one of them, or a folder that holds only these files"

_KINDS = {
    _CONVERT: "heic heif hif avif jxl jp2 j2k jxr tga ico icns ppm pgm pbm pnm qoi dds exr hdr",
    _DEVELOP: "cr2 cr3 crw nef nrw arw sr2 srf dng raf orf rw2 pef srw 3fr iiq rwl x3f",
    _EXPORT: "psd psb xcf kra ai eps ps afphoto",
    _FRAMES: "mp4 m4v mov avi mkv webm mpg mpeg wmv flv mts m2ts 3gp ogv",
    _RENDER: "svg svgz",
    _PAGES: "pdf",
    _PARQUET: "arrow",
    ALONE: "zip tar parquet nc",
    UNPACK: "gz tgz bz2 xz zst 7z rar",
}

ADVICE: Mapping[str, str] = {
    f".{name}": advice.format(f".{name}")
    for advice, names in _KINDS.items()
    for name in names.split()
}
"""Hints by extension."""
