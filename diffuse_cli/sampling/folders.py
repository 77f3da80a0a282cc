"""Folders of samples: which files are theirs, and one process at a time that writes them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.space import Space
from diffuse_cli.data import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.media import MEDIA, suffix
from diffuse_cli.system import files, outputs

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

GRID, GIF = "grid.png", "denoising.gif"

GRID_IMAGES = 400
"""Most images of the grid."""

WORK = ".sampling"
"""The folder, in that of the samples, of what is recorded until they are finished."""

WRITTEN = re.compile(r"\d{5,}\.\w+|grid\.png|denoising\.gif|manifest\.json")


LOCK = ".lock"


@contextlib.contextmanager
def holding(folder: Path, owned: str = f"{WRITTEN.pattern}|{re.escape(WORK)}") -> Iterator[None]:
    """Lock a folder whose files have names that `owned` matches, by default the samples'; remove it
    again if it is new and stays empty."""
    with outputs.hold_lock(folder / LOCK):
        files.sweep(folder, owned)
        yield


class Unfinished:
    """The record of what a command has written into a folder, kept until all of it is there.

    A stopped command leaves it: its files can be told from others, and it can be given again.
    """

    NAME = ".unfinished"

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / self.NAME

    def add(self, name: str, sha256: str) -> None:
        """Note a file that will be written now."""
        files.append_line(self.path, f"{sha256} {name}")

    def write(self, name: str, data: bytes) -> Path:
        """Note a file, and write it."""
        self.add(name, hashlib.sha256(data).hexdigest())
        files.write_bytes(self.folder / name, data)
        return self.folder / name

    def names(self) -> set[str]:
        """Return the files that are there as they were noted."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return set()
        noted = {(sha256, name) for sha256, _, name in (line.partition(" ") for line in lines)}
        return {
            name
            for sha256, name in noted
            if Path(name).name == name
            and (self.folder / name).is_file()
            and files.sha256(self.folder / name) == sha256
        }

    def clear(self) -> None:
        """Remove what an earlier command left unfinished."""
        for name in self.names():
            files.remove(self.folder / name)
        self.end()

    def end(self) -> None:
        """Forget the record: all of it is there."""
        files.remove(self.path)


def manifest_in(folder: Path) -> dict[str, Any]:
    """The manifest of the samples in a folder; empty if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == MANIFEST_FORMAT and all(map(str, manifest["files"])):
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {}


def named_in(manifest: dict[str, Any]) -> list[str]:
    """The files of samples that a manifest lists, and itself; only these are ever replaced."""
    names = [MANIFEST, *map(str, manifest["files"])] if manifest else []
    return [name for name in names if WRITTEN.fullmatch(name)]


class Folder(dict[int, "Array"]):
    """Samples by index: writes each one that is added, and keeps the first ones for the grid."""

    def __init__(self, folder: Path, space: Space) -> None:
        super().__init__()
        self.folder, self.space, self.medium = folder, space, MEDIA[space.medium]
        self.count, self.unfinished = 0, Unfinished(folder)

    def __setitem__(self, index: int, sample: Array) -> None:
        if self.count == 0:
            for name in named_in(manifest_in(self.folder)):
                files.remove(self.folder / name)
            self.unfinished.clear()
        self.unfinished.write(self.path(index).name, self.medium.encode(sample, self.space))
        self.count += 1
        if index < GRID_IMAGES:
            super().__setitem__(index, sample)

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.folder / name_of(index, suffix(self.space))


def name_of(index: int, suffix: str) -> str:
    """The name of a sample's file."""
    return f"{index:05d}{suffix}"


def gather(keep: dict[int, Array]) -> None:
    """Bring what other processes drew to the first one, which writes it."""
    from accelerate.utils import gather_object

    everyone = gather_object([{} if isinstance(keep, Folder) else keep])
    if isinstance(keep, Folder):
        for theirs in everyone:
            for i in sorted(theirs):
                keep[i] = theirs[i]
