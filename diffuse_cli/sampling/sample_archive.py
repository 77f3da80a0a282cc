"""Archives of samples: `sample -o` can name a .zip or .npz file instead of a folder.

The images are written into a hidden folder next to the archive and packed at the end. Equal images
give equal bytes, because members have no times and keep their order.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.core import Space
from diffuse_cli.data.sources import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.data.sources.npz_batch import IMAGES, LABELS
from diffuse_cli.sampling import journal
from diffuse_cli.sampling.journal import GIF, GRID
from diffuse_cli.system import OutputError, UsageError, files

if TYPE_CHECKING:
    from diffuse_cli.media import Array


def is_packed(out: Path) -> bool:
    """Whether `-o` names a file."""
    return out.suffix.lower() in (".zip", ".npz")


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
            raise OutputError(f"{files.show(out)} exists already", journal.TAKEN)


def check_kind(out: Path, space: Space, gif: bool) -> None:
    """Refuse to pack anything except 8-bit images into a .npz file.

    Raises:
        UsageError
    """
    if out.suffix.lower() != ".npz":
        return
    if space.medium != "image" or space.levels != 256 or space.channels not in (1, 3):
        text = f"-o {files.show(out)}: a .npz file holds 8-bit images, grey or RGB"
        raise UsageError(text, "Choose a folder or a .zip file")
    if gif:
        raise UsageError("--gif: a .npz file cannot be animated", "Choose a folder or a .zip file")


def read_packed_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest in a file that `sample` packed, empty if there is none."""
    try:
        with zipfile.ZipFile(out) as archive:
            manifest = dict(json.loads(archive.read(MANIFEST)))
        if manifest["format"] == MANIFEST_FORMAT and [*manifest["images"]]:
            return manifest
    except Exception:  # it may be anything
        pass
    return {}


def check_same(out: Path, key: str, names: Iterator[str]) -> None:
    """Refuse an existing file, except one with the same settings and these images.

    Raises:
        OutputError
    """
    manifest = read_packed_manifest(out)
    if manifest.get(journal.KEY) != key:
        raise OutputError(f"{files.show(out)} exists already, with other settings", journal.TAKEN)
    if not {*names} <= {*manifest["images"]}:
        text = f"{files.show(out)} exists already, with {len(manifest['images']):,} images"
        raise OutputError(text, "Choose a folder to be able to add images, or pass --overwrite")


def pack(
    out: Path, folder: Path, read: Callable[[Path], Array], labels: Sequence[int] | None
) -> None:
    """Pack a folder into a file, whole or not at all.

    A .zip file holds the files of the folder. A .npz file holds the images as one array
    (N, H, W, C), the labels as another, and a manifest.

    Args:
        folder: the folder of the images and their manifest.
        read: a function that returns the values (C, H, W) of an image's file.
        labels: the class of each image.
    """
    import numpy as np

    manifest = files.read_json(folder / MANIFEST)
    with files.replace_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        if out.suffix.lower() == ".zip":
            pictures = [name for name in (GRID, GIF) if name in manifest["files"]]
            for name in (*manifest["images"], *pictures, MANIFEST):
                data = (folder / name).read_bytes()
                _add(archive, name, [data], len(data))
            return
        paths = [folder / name for name in manifest["images"]]
        channels, *size = read(paths[0]).shape
        shape, header, end = (len(paths), *size, channels), io.BytesIO(), io.BytesIO()
        kind = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, kind)
        pixels = (np.moveaxis(read(path), 0, -1).tobytes() for path in paths)
        parts = chain([header.getvalue()], pixels)
        listed = {IMAGES: _add(archive, IMAGES, parts, math.prod(shape) + 128)}
        if labels is not None:
            np.lib.format.write_array(end, np.array(labels, np.int64), (1, 0), allow_pickle=False)
            listed[LABELS] = _add(archive, LABELS, [end.getvalue()])
        text = files.as_json({**manifest, "files": listed})
        _add(archive, MANIFEST, [text.encode()], len(text))


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
