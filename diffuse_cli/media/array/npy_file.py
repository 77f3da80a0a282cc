"""Read the array in the bytes of a .npy or .npz file, without pickle."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib import format as npy

from diffuse_cli.media import LARGE, Array, errors_as, lock_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable, member_fault, read_member
from diffuse_cli.system import show

ZIPPED = b"PK\3\4"
_NAMED, _LONGEST_NAME = 3, 20
"""Number of arrays of a .npz that a message names, and characters per name."""

HEADERS: dict[tuple[int, int], Callable[..., tuple[Any, ...]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
"""Header readers by version. Version 3.0 is for names of fields, which arrays here cannot have."""


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
    with errors_as(reasons.CORRUPT), zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [info for info in file.infolist() if not info.is_dir()]
        if len(members) != 1:
            raise Unusable(reasons.MEMBERS.format(_format_members(members)))
        (info,) = members
        if fault := member_fault(info):
            raise Unusable(fault)
        with lock_large(info.file_size > LARGE), file.open(info) as opened:
            return read_member(opened)


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
    with errors_as(reasons.CORRUPT):
        version = npy.read_magic(file)
        if version == (3, 0):
            raise Unusable(reasons.NUMBERS)
        shape, fortran, dtype = HEADERS[version](file)
    _check_type(dtype)
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise Unusable(reasons.CORRUPT)
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise Unusable(reasons.CORRUPT)
    flat = np.frombuffer(data, dtype, offset=file.tell())
    values = flat.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(values, dtype.newbyteorder("=")).reshape(shape)


def _check_type(dtype: np.dtype[Any]) -> None:
    """Refuse types that are not real numbers."""
    if dtype.hasobject:
        raise Unusable(reasons.OBJECTS)
    if dtype.kind == "c":
        raise Unusable(reasons.COMPLEX)
    if dtype.kind not in "biuf" or dtype.itemsize == 0:
        raise Unusable(reasons.NUMBERS)
