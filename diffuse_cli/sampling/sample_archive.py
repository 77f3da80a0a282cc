"""What `sample -o` names: a folder, or a .zip or .npz file, which a folder is packed into.

While images are drawn they are files of a hidden folder beside it. Equal images give equal bytes:
members have no times, and stay in their order.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from diffuse_cli.core.space import Space
from diffuse_cli.data.sources.entries import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.data.sources.npz_batch import IMAGES, LABELS
from diffuse_cli.sampling import journal
from diffuse_cli.sampling.journal import GIF, GRID
from diffuse_cli.system import files
from diffuse_cli.system.errors import OutputError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_ZIP64 = 2**31


def is_packed(out: Path) -> bool:
    """Whether `-o` names a file."""
    return out.suffix.lower() in PACKERS


def folder_of(out: Path) -> Path:
    """The folder that images are written into."""
    return out.with_name(f".{out.name}.parts") if is_packed(out) else out


def check(out: Path, overwrite: bool) -> None:
    """Refuse, before any computing, what cannot be written.

    Raises:
        OutputError: it exists and is not of `sample`, or cannot be written.
    """
    journal.check(folder_of(out), overwrite)
    if is_packed(out):
        files.check_writable(out)
        if out.exists() and not overwrite and not manifest_of(out):
            raise OutputError(f"{files.show(out)} exists already", journal.TAKEN)


def check_kind(out: Path, space: Space, gif: bool) -> None:
    """Refuse a .npz of anything but images of 8 bits.

    Raises:
        UsageError
    """
    if out.suffix.lower() != ".npz":
        return
    if space.medium != "image" or space.levels != 256 or space.channels not in (1, 3):
        raise UsageError(
            f"-o {files.show(out)}: a .npz is of images of 8 bits, grey or in colour",
            "Name a folder or a .zip",
        )
    if gif:
        raise UsageError("--gif goes with a folder or a .zip", "Leave it out, or choose another -o")


def manifest_of(out: Path) -> dict[str, Any]:
    """The manifest in a file that `sample` packed; empty if there is none."""
    try:
        with zipfile.ZipFile(out) as archive:
            manifest = dict(json.loads(archive.read(MANIFEST)))
        if manifest["format"] == MANIFEST_FORMAT and [*manifest["images"]]:
            return manifest
    except Exception:  # it may be anything
        pass
    return {}


def check_same(out: Path, key: str, names: Iterator[str]) -> None:
    """Refuse a file that exists, but for one of the same settings that has these images.

    Raises:
        OutputError
    """
    there = manifest_of(out)
    if there.get(journal.KEY) != key:
        raise OutputError(f"{files.show(out)} exists already, of other settings", journal.TAKEN)
    if not {*names} <= {*there["images"]}:
        raise OutputError(
            f"{files.show(out)} exists already, with {len(there['images']):,} images",
            "Name a folder to add to one, or --overwrite",
        )


def pack(
    out: Path, folder: Path, read: Callable[[Path], Array], labels: Sequence[int] | None
) -> None:
    """Write the file, whole or not at all.

    Args:
        folder: of the images and their manifest.
        read: the numbers (C, H, W) of a file of an image.
        labels: the class of each image.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    with files.writing(out) as file, zipfile.ZipFile(file, "w") as archive:
        PACKERS[out.suffix.lower()](archive, folder, manifest, read, labels)


def _member(archive: zipfile.ZipFile, name: str, parts: Iterator[bytes], size: int) -> str:
    """Add a member, and its SHA-256."""
    info = zipfile.ZipInfo(name)  # its time is 1980
    info.external_attr, info.create_system, info.file_size = 0o644 << 16, 3, size
    made = hashlib.sha256()
    with archive.open(info, "w", force_zip64=size >= _ZIP64) as member:
        for part in parts:
            member.write(part)
            made.update(part)
    return made.hexdigest()


def _zip(
    archive: zipfile.ZipFile,
    folder: Path,
    manifest: Mapping[str, Any],
    read: Callable[[Path], Array],
    labels: Sequence[int] | None,
) -> None:
    """The files of the folder."""
    pictures = [name for name in (GRID, GIF) if name in manifest["files"]]
    for name in (*manifest["images"], *pictures, MANIFEST):
        data = (folder / name).read_bytes()
        _member(archive, name, iter([data]), len(data))


def _npz(
    archive: zipfile.ZipFile,
    folder: Path,
    manifest: Mapping[str, Any],
    read: Callable[[Path], Array],
    labels: Sequence[int] | None,
) -> None:
    """The images as one array (N, H, W, C), the labels as another, and the manifest of these."""
    import numpy as np

    names = manifest["images"]
    channels, *size = read(folder / names[0]).shape
    shape = (len(names), *size, channels)

    def arrays() -> Iterator[bytes]:
        header: IO[bytes] = io.BytesIO()
        kind = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, kind)
        header.seek(0)
        yield header.read()
        for name in names:
            yield np.moveaxis(read(folder / name), 0, -1).tobytes()

    listed = {IMAGES: _member(archive, IMAGES, arrays(), int(np.prod(shape)) + 128)}
    if labels is not None:
        data = io.BytesIO()
        np.lib.format.write_array(data, np.array(labels, np.int64), (1, 0), allow_pickle=False)
        content = data.getvalue()
        listed[LABELS] = _member(archive, LABELS, iter([content]), len(content))
    text = json.dumps({**manifest, "files": listed}, indent=2, sort_keys=True) + "\n"
    _member(archive, MANIFEST, iter([text.encode()]), len(text))


PACKERS = {".zip": _zip, ".npz": _npz}
"""How a file of each suffix is packed."""
