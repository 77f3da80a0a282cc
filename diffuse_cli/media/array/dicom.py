"""Slices and volumes of scanners in DICOM files. Needs pydicom.

Only the elements that describe pixels are read (DICOM PS3.3, C.7.6.3 and C.11.1), none about the
patient.
"""

from __future__ import annotations

import io
import math

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.media import array as arrays
from diffuse_cli.media import file_errors as reasons

PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
    "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence",
)  # fmt: skip
"""Elements that are read."""

PLACE = ("SeriesInstanceUID", "ImageOrientationPatient", "ImagePositionPatient", "InstanceNumber")
"""Elements that order the slices of a series."""

DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax of files that are compressed as a whole, which unpack to any size."""


def is_dicom(data: bytes) -> bool:
    """Whether bytes start a DICOM file."""
    return data[128:132] == b"DICM"


def read(data: bytes) -> tuple[Array, str]:
    """Return values after rescaling: (H, W), with frames (D, H, W), with colors the channels last.

    Values of MONOCHROME1, where the lowest is white, are inverted.
    """
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # warnings quote values
    if DEFLATED in data:
        raise reasons.Unusable(reasons.COMPRESSION)
    with reasons.errors_as(reasons.CORRUPT):
        file = pydicom.dcmread(io.BytesIO(data), specific_tags=[*PIXELS])
        if "PixelData" not in file:
            raise reasons.Unusable(reasons.NOT_AN_ARRAY)
        if "SharedFunctionalGroupsSequence" in file:
            raise reasons.Unusable(reasons.ENHANCED)
        if file.PhotometricInterpretation == "PALETTE COLOR":
            raise reasons.Unusable(reasons.PALETTE)
        frames, colors = int(file.get("NumberOfFrames") or 1), int(file.SamplesPerPixel)
        size = math.prod((frames, colors, file.Rows, file.Columns, file.BitsAllocated // 8 or 1))
        if size > reasons.LARGEST_FILE:
            raise reasons.Unusable(reasons.TOO_LARGE)
        packed = file.file_meta.TransferSyntaxUID.is_compressed
    with (
        reasons.errors_as(reasons.COMPRESSION if packed else reasons.CORRUPT),
        reasons.lock_large(size),
    ):
        values = file.pixel_array
        if file.PhotometricInterpretation == "MONOCHROME1":
            values = (
                np.invert(values) if file.PixelRepresentation else 2**file.BitsStored - 1 - values
            )
        slope, intercept = (file.get(f"Rescale{name}") for name in ("Slope", "Intercept"))
        if (slope, intercept) not in ((None, None), (1, 0)):  # elements may be empty
            values = values * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
    return values, "D" * (frames > 1) + "HW" + "C" * (colors > 1)


def locate_slice(path: str) -> tuple[str, float]:
    """Return the series of a file, and the position of its slice along the normal of the slices.

    Without a position, it is the number in the series (DICOM PS3.3, C.7.6.2.1.1).
    """
    import pydicom

    with reasons.errors_as(reasons.CORRUPT):
        file = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*PLACE])
        if "ImagePositionPatient" not in file or "ImageOrientationPatient" not in file:
            return str(file.SeriesInstanceUID), float(file.get("InstanceNumber") or 0)
        sides = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(sides[0], sides[1])
        return str(file.SeriesInstanceUID), float(
            normal @ np.array(file.ImagePositionPatient, float)
        )


FORMAT = arrays.ArrayFormat(extensions=(".dcm",), package="pydicom", recognizes=is_dicom, read=read)
