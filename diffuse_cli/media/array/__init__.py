"""Arrays in .npy and .npz files, and in formats of this folder: any channels, one to three
dimensions, levels or floats.

TIFFs of 32-bit floats are arrays, too, and their pages are channels. Unsigned integers of 1, 8 and
16 bits are levels. All other numbers are floats.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from diffuse_cli import media
from diffuse_cli.core import InvalidArgument, Modules, Space
from diffuse_cli.core.registry import lookup
from diffuse_cli.core.space import MOST_CHANNELS
from diffuse_cli.media import Array, Read, ReadSettings, Size, Unusable
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array_figures import plot_channels
from diffuse_cli.media.image.decoding import is_float, read_floats
from diffuse_cli.system import extra_package, show

SIDES = {1: 4096, 2: 64, 3: 32}
"""The longest side of arrays that keep their size, by their number of dimensions."""

USUAL = {1: "L", 2: "HW", 3: "CHW", 4: "CDHW"}
"""Default layouts of files, by their number of axes."""

LOOKED_AT = 32
"""Number of files whose shapes show the layout."""

LEVELS = {"bool": 2, "uint8": 256, "uint16": 65_536}
"""Number of levels by type. Other types are floats."""

_LOADERS = {
    ".h5": ("h5py", "h5py.File('NAME.h5')['DATASET'][()]"),
    ".hdf5": ("h5py", "h5py.File('NAME.hdf5')['DATASET'][()]"),
    ".zarr": ("zarr", "zarr.open('NAME.zarr')['ARRAY'][:]"),
    ".mat": ("scipy.io", "scipy.io.loadmat('NAME.mat')['VARIABLE']"),
    ".fits": ("astropy.io.fits", "astropy.io.fits.getdata('NAME.fits')"),
}
"""Packages that read files of other programs, and the array in one, by extension."""
_CONVERT = "convert them to .npy, for example with python -c"


ZIPPED = b"PK\3\4"
_NAMED, _LONGEST_NAME = 3, 20
"""Number of arrays of a .npz that a message names, and characters per name."""

HEADERS: dict[tuple[int, int], Callable[..., tuple[Any, ...]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
"""Header readers by version. Version 3.0 is for names of fields, which arrays here cannot have."""


@dataclass(frozen=True, kw_only=True)
class ArrayFormat:
    """Format of another program: `FORMAT` of a module of this folder, or of another package.

    Attributes:
        extensions: the extensions of its files.
        package: the package of the extra `science` that it needs.
        recognizes: whether bytes start such a file.
        read: returns the array of such a file and its layout. It raises `Unusable`.
    """

    extensions: Sequence[str]
    package: str
    recognizes: Callable[[bytes], bool]
    read: Callable[[bytes], tuple[Array, str]]


FORMATS: Mapping[str, ArrayFormat] = Modules("array-formats", __name__, __path__, (), "FORMAT")


def find_format(data: bytes) -> ArrayFormat | None:
    """Return the format of a file, None if it is not in `FORMATS`.

    Raises:
        DataError: its package is not installed.
    """
    for name, file_format in FORMATS.items():
        if file_format.recognizes(data):
            text = f"{file_format.package} is needed to read {name} files"
            extra_package(file_format.package, "science", text)
            return file_format
    return None


def read_array(data: bytes) -> Array:
    """Return the only array of a file, in C order and the byte order of the machine.

    Raises:
        Unusable: the file has no usable array.
    """
    if not data:
        raise Unusable(reasons.EMPTY)
    if data.startswith((ZIPPED, b"PK\5\6")):
        data = _member(data)
    return _parse_npy(data)


def _member(data: bytes) -> bytes:
    """Return the bytes of the only array of a .npz."""
    with reasons.errors_as(reasons.CORRUPT), zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [info for info in file.infolist() if not info.is_dir()]
        if len(members) != 1:
            raise Unusable(reasons.MEMBERS.format(_format_members(members)))
        (info,) = members
        if fault := reasons.member_fault(info):
            raise Unusable(fault)
        with reasons.lock_large(info.file_size), file.open(info) as opened:
            return reasons.read_member(opened)


def _format_members(members: list[zipfile.ZipInfo]) -> str:
    """Return the number and names of arrays, such as `2 arrays (x, y)`."""
    names = [show(info.filename.removesuffix(".npy"), _LONGEST_NAME) for info in members]
    more = ", ..." if len(names) > _NAMED else ""
    named = f" ({', '.join(names[:_NAMED])}{more})" if names else ""
    return f"{len(names)} arrays{named}"


def _parse_npy(data: bytes) -> Array:
    """Return the array of a .npy. Its header is checked before anything is allocated."""
    if not data.startswith(npy.MAGIC_PREFIX):
        cut = npy.MAGIC_PREFIX.startswith(data[: len(npy.MAGIC_PREFIX)])
        raise Unusable(reasons.CORRUPT if cut else reasons.NOT_AN_ARRAY)
    file = io.BytesIO(data)
    with reasons.errors_as(reasons.CORRUPT):
        version = npy.read_magic(file)
        if version == (3, 0):
            raise Unusable(reasons.NUMBERS)
        shape, fortran, dtype = HEADERS[version](file)
    check_type(dtype)
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise Unusable(reasons.CORRUPT)
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise Unusable(reasons.CORRUPT)
    flat = np.frombuffer(data, dtype, offset=file.tell())
    values = flat.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(values, dtype.newbyteorder("=")).reshape(shape)


def check_type(dtype: np.dtype[Any]) -> None:
    """Refuse types that are not real numbers."""
    if dtype.hasobject:
        raise Unusable(reasons.OBJECTS)
    if dtype.kind == "c":
        raise Unusable(reasons.COMPLEX)
    if dtype.kind not in "biuf" or dtype.itemsize == 0:
        raise Unusable(reasons.NUMBERS)


def crop(sample_size: Size, target_size: Size) -> tuple[media.Lengths, media.Lengths]:
    """Cut the sample to the result, because values of a field must not be resampled."""
    return target_size, target_size


def complete_settings(settings: ReadSettings, files: Iterable[bytes]) -> tuple[ReadSettings, str]:
    """Return `settings` with the layout that the shapes of some files show, and a notice of it.

    The pages of a TIFF always come first.

    Raises:
        InvalidArgument: the shapes show two layouts.
        DataError: a file needs a package that is not installed.
    """
    shapes = set[tuple[int, ...]]()
    for data in itertools.islice((data for data in files if not is_float(data)), LOOKED_AT):
        with contextlib.suppress(Unusable):
            if not find_format(data) and settings.layout is None:
                shapes.add(read_array(data).shape)
    if (layout := media.infer_layout(sorted(shapes))) is None:
        return settings, ""
    first = media.FIRST[len(layout)]
    notice = f"arrays are read with channels last. If they are first, pass --layout {first}"
    return replace(settings, layout=layout), notice


def read(data: bytes, settings: ReadSettings) -> Read:
    """Read an array, channels first, and cut it at its center to the requested size."""
    if file_format := find_format(data):
        whole, layout = file_format.read(data)
        values, layout = _channels_first(whole, replace(settings, layout=settings.layout or layout))
    else:
        whole = read_floats(data) if is_float(data) else read_array(data)
        values, layout = _channels_first(whole, settings)
    digest = media.content_digest(f"{values.dtype.str} {values.shape}", values)
    channels, *size = values.shape
    if channels > MOST_CHANNELS:
        raise Unusable(reasons.MANY_CHANNELS)
    if settings.channels not in (None, channels):
        raise Unusable(reasons.CHANNELS)
    numbers = _convert_dtype(values, settings.numbers)
    default_size = tuple(min(side, SIDES[len(size)]) for side in size)
    numbers = fit(numbers, replace(settings, size=settings.size or default_size))
    return Read(numbers, digest, whole.dtype.name, tuple(size[::-1]), channels, layout=layout)


def _channels_first(values: Array, settings: ReadSettings) -> tuple[Array, str]:
    """Return the array as (C, *size), and its layout.

    An axis of one entry at the other end is the channel if the size needs longer axes: masks often
    have another order than the arrays that they belong to.
    """
    if values.ndim not in USUAL or values.size == 0:
        raise Unusable(reasons.AXES if values.size else reasons.EMPTY)
    layout, ends = settings.layout or USUAL[values.ndim], (values.shape[0], values.shape[-1])
    if values.ndim == len(layout) - 1 and "C" in layout:  # one channel, without its axis
        return values[None], layout
    if values.ndim == len(layout) + 1 and 1 in ends and "C" not in layout:
        return values.squeeze(0 if ends[0] == 1 else -1)[None], layout
    if values.ndim != len(layout):
        raise Unusable(reasons.LAYOUT)
    if "C" not in layout:
        return values[None], layout
    axis = layout.index("C")
    if values.shape[-1 - axis] == 1 < min(settings.size or (1,)):
        axis = -1 - axis
    return np.ascontiguousarray(np.moveaxis(values, axis, 0)), layout


def _convert_dtype(values: Array, numbers: str | None) -> Array:
    """Return values in the type in which they are stored: levels, or float32."""
    if values.dtype.name not in LEVELS:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise Unusable(reasons.MISSING)
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise Unusable(reasons.RANGE)
    if numbers is None:
        return values
    if not np.can_cast(values.dtype, numbers, "safe"):
        raise Unusable(reasons.OTHER_NUMBERS)
    return values.astype(numbers)


def fit(values: Array, settings: ReadSettings) -> Array:
    """Cut the center of (C, *size). Equal sides fit any number of dimensions."""
    assert settings.size is not None
    sample_size, target_size = values.shape[1:], settings.size
    if len(target_size) != len(sample_size) and len(set(target_size)) == 1:
        target_size = target_size[:1] * len(sample_size)
    if len(target_size) != len(sample_size):
        raise Unusable(reasons.AXES_OF_SIZE)
    if any(a < b for a, b in zip(sample_size, target_size, strict=True)):
        raise Unusable(reasons.SMALL)
    starts = [(a - b) // 2 for a, b in zip(sample_size, target_size, strict=True)]
    parts = (slice(start, start + side) for start, side in zip(starts, target_size, strict=True))
    return np.ascontiguousarray(values[(slice(None), *parts)])


def space(samples: Array) -> Space:
    """Return the space of samples: levels by their type, or floats."""
    channels, *size = map(int, samples.shape[1:])
    levels = LEVELS.get(samples.dtype.name)
    floats = 0 if levels else channels
    return Space(
        channels=channels,
        size=tuple(size),
        medium="array",
        levels=levels,
        mean=(0.0,) * floats,
        std=(1.0,) * floats,
    )


def check(space: Space) -> None:
    """Check that the layout fits the dimensions, and that a type has the number of levels."""
    if space.layout is not None:
        lookup(dict.fromkeys(media.OF_ARRAYS), space.layout, "layout")
        axes = space.layout.replace("C", "")
        if len(axes) != space.dims or (axes == space.layout and space.channels != 1):
            raise InvalidArgument(f"an array of {space.shape} cannot have layout {space.layout}")
    if space.levels not in (None, *LEVELS.values()):
        raise InvalidArgument(f"an array cannot have {space.levels} levels")


def encode(sample: Array, space: Space) -> bytes:
    """Encode a sample as a .npy file in the layout and type of the training files."""
    values = np.asarray(sample).astype(space.stored_dtype)
    layout = space.layout or USUAL[space.dims + 1]
    return to_npy(np.moveaxis(values, 0, layout.index("C")) if "C" in layout else values[0])


def to_npy(values: Array) -> bytes:
    """Return the bytes of a .npy file, in C order."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(values), (1, 0), allow_pickle=False)
    return file.getvalue()


def render(samples: Array, space: Space) -> npt.NDArray[np.uint8]:
    """Show channels as grey images side by side, signals as lines, and volumes as three slices.

    Floats are grey at their mean, and white or black three standard deviations from it.
    """
    if space.levels == 256 and samples.shape[1] == 3 and space.dims == 2:
        return samples.astype(np.uint8)
    return plot_channels(_shades(samples, space))


def _shades(samples: Array, space: Space) -> npt.NDArray[np.uint8]:
    """Return samples (N, C, *size) as greys."""
    import torch

    if space.level_range is not None:
        low, high = space.level_range
        scaled = (samples.astype(np.float32) - low) * np.float32(255 / (high - low))
    else:
        model = space.to_model(torch.from_numpy(np.ascontiguousarray(samples))).numpy()
        scaled = 127.5 + 127.5 / 3 * np.nan_to_num(model).clip(-3, 3)
    shades: npt.NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return shades


MEDIUM = media.Medium(
    extensions=frozenset({".npy", ".npz"}.union(*(f.extensions for f in FORMATS.values()))),
    suffix=".npy",
    one="array",
    many="arrays",
    sides=SIDES,
    read=read,
    fit=fit,
    space=space,
    encode=encode,
    look=render,
    check=check,
    settled=complete_settings,
    fits={"crop": crop},
    advice={
        extension: f"{_CONVERT} \"import numpy, {package}; numpy.save('NAME.npy', {values})\""
        for extension, (package, values) in _LOADERS.items()
    },
    layouts=media.OF_ARRAYS,
    claimed=frozenset({".tif", ".tiff"}),
    claims=is_float,
    unpacked=True,
    fitted="cut",
    judged=False,
    flipped="along their last axis",
    augmentations=("flip", "shift"),
)
