"""Files that `sample -o` can name instead of a folder: .zip, .npz and .nc.

Samples are written into a hidden folder next to the file, and packed at the end. Equal images give
equal bytes, because members have no times and keep their order.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.core import Space
from diffuse_cli.data.sources import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.data.sources.npz_batch import IMAGES, LABELS
from diffuse_cli.media import Array
from diffuse_cli.media.array import to_npy
from diffuse_cli.sampling import journal
from diffuse_cli.system import OutputError, UsageError, extra_package, files


def is_packed(out: Path) -> bool:
    """Whether `-o` names a file."""
    return out.suffix.lower() in journal.PACKED


def choose_folder(out: Path) -> Path:
    """Return the folder that images are written into."""
    return out.with_name(f".{out.name}.parts") if is_packed(out) else out


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse, before computing, an output that cannot be written.

    Raises:
        OutputError: it cannot be written, or it exists and `sample` did not write it.
    """
    journal.check_folder(choose_folder(out), overwrite)
    if is_packed(out):
        files.check_writable(out)
        if out.exists() and not overwrite and not read_packed_manifest(out):
            text = f"{files.show(out)} exists already"
            raise OutputError(text, journal.TAKEN, code="output_exists", path=out)


def check_kind(out: Path, space: Space, *, gif: bool, members: bool) -> None:
    """Refuse to pack anything except numbered 8-bit images into a .npz file, or fields into .nc.

    Raises:
        UsageError
        DataError: netCDF4 is not installed.
    """
    if (suffix := out.suffix.lower()) not in (".npz", journal.NETCDF):
        return
    hint = "Choose a folder or a .zip file"
    if suffix == journal.NETCDF:
        extra_package("netCDF4", "science", f"netCDF4 is needed to write {files.show(out)}")
        if space.medium != "array" or members or space.dims > 2 or space.stored_dtype == "bool":
            text = f"-o {files.show(out)}: a .nc file holds fields of numbers, without names"
            raise UsageError(text, hint, code="output_unsuited", option="-o", path=out)
    elif space.medium != "image" or space.levels != 256 or space.channels not in (1, 3) or members:
        text = f"-o {files.show(out)}: a .npz file holds 8-bit images without names, grey or RGB"
        raise UsageError(text, hint, code="output_unsuited", option="-o", path=out)
    if gif:
        text = f"--gif: a {suffix} file cannot be animated"
        raise UsageError(text, hint, code="output_unsuited", path=out)


def read_packed_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest in a file that `sample` packed, empty if there is none."""
    try:
        if out.suffix.lower() == journal.NETCDF:
            import netCDF4

            with netCDF4.Dataset(out) as dataset:
                manifest = dict(json.loads(dataset.getncattr(MANIFEST_FORMAT)))
        else:
            with zipfile.ZipFile(out) as archive:
                manifest = dict(json.loads(archive.read(MANIFEST)))
        if manifest["format"] == MANIFEST_FORMAT and [*manifest["images"]]:
            return manifest
    except Exception:  # it may be anything
        pass
    return {}


def check_same(out: Path, key: str, names: Iterable[str], figures: Iterable[str]) -> None:
    """Refuse an existing file, except one with the same settings, these images and these figures.

    Raises:
        OutputError
    """
    manifest = read_packed_manifest(out)
    if manifest.get(journal.KEY) != key:
        text = f"{files.show(out)} exists already, with other settings"
        raise OutputError(text, journal.TAKEN, code="output_exists", path=out)
    if not {*names} <= {*manifest["images"]}:
        text = f"{files.show(out)} exists already, with {len(manifest['images']):,} images"
        hint = "Choose a folder to be able to add images, or pass --overwrite"
        raise OutputError(text, hint, code="output_exists", path=out)
    if out.suffix.lower() == ".zip" and (lost := {*figures} - {*manifest["files"]}):
        text = f"{files.show(out)} exists already, without {min(lost)}"
        raise OutputError(text, journal.TAKEN, code="output_exists", path=out)


def pack(
    out: Path,
    folder: Path,
    read: Callable[[Path], Array],
    labels: Sequence[int] | None,
    space: Space,
) -> None:
    """Pack a folder into a file, whole or not at all.

    A .zip file holds the files of the folder. A .npz file holds the images as one array
    (N, H, W, C), the labels as another, and a manifest. A .nc file holds a variable per channel.

    Args:
        folder: the folder of the images and their manifest.
        read: a function that returns the values (C, H, W) of an image's file.
        labels: the class of each image.
    """
    manifest = files.read_json(folder / MANIFEST)
    if out.suffix.lower() == journal.NETCDF:
        samples = (read(folder / name) for name in manifest["images"])
        files.write_bytes(out, _encode_netcdf(samples, space, manifest))
        return
    with files.replace_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        if out.suffix.lower() == ".zip":
            pictures = sorted(filter(journal.FIGURE.fullmatch, manifest["files"]), reverse=True)
            for name in (*manifest["images"], *pictures, MANIFEST):
                data = (folder / name).read_bytes()
                _add(archive, name, [data], len(data))
            return
        paths = [folder / name for name in manifest["images"]]
        channels, *size = read(paths[0]).shape
        shape, header = (len(paths), *size, channels), io.BytesIO()
        kind = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, kind)
        pixels = (np.moveaxis(read(path), 0, -1).tobytes() for path in paths)
        parts = chain([header.getvalue()], pixels)
        listed = {IMAGES: _add(archive, IMAGES, parts, math.prod(shape) + 128)}
        if labels is not None:
            listed[LABELS] = _add(archive, LABELS, [to_npy(np.array(labels, np.int64))])
        text = files.as_json({**manifest, "files": listed})
        _add(archive, MANIFEST, [text.encode()], len(text))


def _encode_netcdf(samples: Iterable[Array], space: Space, manifest: Mapping[str, Any]) -> bytes:
    """Return a netCDF file with a variable for each channel, and the manifest as an attribute."""
    import netCDF4

    # Files of HDF5 contain the time at which they were written.
    dataset = netCDF4.Dataset("samples.nc", "w", memory=1, format="NETCDF3_64BIT_DATA")
    dataset.setncattr(MANIFEST_FORMAT, files.as_json(manifest))
    names = ("sample", *"zyx"[-space.dims :])
    for name, length in zip(names, (len(manifest["images"]), *space.size), strict=True):
        dataset.createDimension(name, length)
    channels, dtype = [], np.dtype(space.stored_dtype).str
    for quantity in space.quantities or [f"channel_{k}" for k in range(space.channels)]:
        name, _, unit = quantity.removesuffix("]").partition(" [")
        channels.append(dataset.createVariable(name, dtype, names))
        if unit:
            channels[-1].setncattr("units", unit)
    for row, sample in enumerate(samples):
        for channel, values in zip(channels, sample, strict=True):
            channel[row] = values
    return bytes(dataset.close())


def _add(archive: zipfile.ZipFile, name: str, parts: Iterable[bytes], size: int = 0) -> str:
    """Add a member, and return its SHA-256.

    Args:
        size: the approximate size in bytes, needed for gigabytes.
    """
    info = zipfile.ZipInfo(name)  # with the default time, in 1980
    info.external_attr, info.create_system, info.file_size = 0o644 << 16, 3, size
    digest = hashlib.sha256()
    with archive.open(info, "w") as member:
        for part in parts:
            member.write(part)
            digest.update(part)
    return digest.hexdigest()
