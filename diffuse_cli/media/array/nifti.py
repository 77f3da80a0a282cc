"""Volumes of magnetic resonance and computed tomography in NIfTI files. Needs nibabel.

Only numbers of the header are used, never its texts (https://nifti.nimh.nih.gov/nifti-1).
"""

from __future__ import annotations

import gzip
import io
import math
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
    import nibabel

    with reasons.errors_as(reasons.CORRUPT):
        file = (
            gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(ZIPPED) else io.BytesIO(data)
        )
        start = file.read(LONGEST_HEADER)
        kind: Any = nibabel.Nifti2Header if start[4:8] == b"n+2\0" else nibabel.Nifti1Header
        header: Any = kind(start[: kind.template_dtype.itemsize])
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
        arrays.check_type(dtype)
        count, offset = math.prod(shape), header.get_data_offset()
        if offset + count * dtype.itemsize > reasons.LARGEST_FILE:
            raise reasons.Unusable(reasons.TOO_LARGE)
        with reasons.lock_large(count * dtype.itemsize > reasons.LARGE):
            body = start + file.read(offset + count * dtype.itemsize - len(start))
            values = np.frombuffer(body, dtype, count, offset).astype(dtype.newbyteorder("="))
        slope, intercept = header.get_slope_inter()
        if slope is not None and (slope, intercept) != (1, 0):
            values = values * slope + intercept
        x, y, z, *channel_sides = (*shape, 1, 1)[: max(3, len(shape))]
        values = values.reshape((x, y, z, math.prod(channel_sides)), order="F")
        orientation = nibabel.io_orientation(header.get_best_affine())
        values = nibabel.apply_orientation(values, orientation)[:, ::-1].transpose(3, 2, 1, 0)
    unused = tuple(k for k in (0, 1) if values.shape[k] == 1)
    return values.squeeze(unused), "".join(a for k, a in enumerate("CDHW") if k not in unused)


FORMAT = arrays.ArrayFormat(
    extensions=(".nii", ".nii.gz"), package="nibabel", recognizes=is_nifti, read=read
)
