"""Volumes of magnetic resonance and computed tomography in NIfTI files. Needs nibabel.

Only numbers of the header are used, never its texts (https://nifti.nimh.nih.gov/nifti-1).
"""

from __future__ import annotations

import gzip
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.media import array as arrays
from diffuse_cli.media import file_errors as reasons

ZIPPED = b"\x1f\x8b"
LONGEST_HEADER = 540


def is_nifti(data: bytes) -> bool:
    """Whether bytes start a NIfTI file of version 1 or 2, or one that is compressed."""
    return data.startswith(ZIPPED) or data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0"


def read(data: bytes) -> tuple[Array, str]:
    """Return values from inferior to superior, anterior to posterior, left to right.

    A volume is (D, H, W), or (H, W) if it has one slice. Further dimensions are channels.
    """
    values = read_volume(data)
    unused = tuple(k for k in (0, 1) if values.shape[k] == 1)
    return values.squeeze(unused), "".join(a for k, a in enumerate("CDHW") if k not in unused)


def read_shape(path: str) -> tuple[int, ...]:
    """Return the shape (C, D, H, W) of the volume in a file, of which only the start is read.

    Raises:
        Unusable: the file is not a volume, or cannot hold slices of this shape along any axis.
    """
    with reasons.errors_as(reasons.CORRUPT), Path(path).open("rb") as packed:
        _, _, header = _read_header(packed)
        shape = _turn(np.broadcast_to(np.uint8(0), header.get_data_shape()), header).shape
        reasons.check_count(max(shape), min(shape), Path(path).stat().st_size)
    return shape


def read_volume(data: bytes) -> Array:
    """Return values (C, D, H, W) in the directions of `read`."""
    with reasons.errors_as(reasons.CORRUPT):
        file, start, header = _read_header(io.BytesIO(data))
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
        arrays.check_type(dtype)
        count, offset = math.prod(shape), header.get_data_offset()
        if offset + count * dtype.itemsize > reasons.LARGEST_FILE:
            raise reasons.Unusable(reasons.TOO_LARGE)
        with reasons.lock_large(count * dtype.itemsize):
            body = start + file.read(offset + count * dtype.itemsize - len(start))
            values = np.frombuffer(body, dtype, count, offset).astype(dtype.newbyteorder("="))
        slope, intercept = header.get_slope_inter()
        if slope is not None and (slope, intercept) != (1, 0):
            values = values * slope + intercept
        return _turn(values.reshape(shape, order="F"), header)


def _read_header(file: io.BufferedIOBase) -> tuple[io.BufferedIOBase, bytes, Any]:
    """Return the file, decompressed, and its start with the header."""
    import nibabel

    start = file.read(LONGEST_HEADER)
    if start.startswith(ZIPPED):
        file.seek(0)
        file = gzip.GzipFile(fileobj=file)
        start = file.read(LONGEST_HEADER)
    kind: Any = nibabel.Nifti2Header if start[4:8] == b"n+2\0" else nibabel.Nifti1Header
    return file, start, kind(start[: kind.template_dtype.itemsize])


def _turn(values: Array, header: Any) -> Array:
    """Return values (x, y, z, ...) as (C, D, H, W), without a copy."""
    import nibabel

    x, y, z, *channel_sides = (*values.shape, 1, 1)[: max(3, values.ndim)]
    values = values.reshape((x, y, z, math.prod(channel_sides)), order="F")
    orientation = nibabel.io_orientation(header.get_best_affine())
    turned: Array = nibabel.apply_orientation(values, orientation)
    return turned[:, ::-1].transpose(3, 2, 1, 0)


FORMAT = arrays.ArrayFormat(
    extensions=(".nii", ".nii.gz"), package="nibabel", recognizes=is_nifti, read=read
)
