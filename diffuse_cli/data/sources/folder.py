"""A folder, searched to any depth, or the file of a single sample."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from diffuse_cli.data.sources import base
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system import extra_package, show
from diffuse_cli.system.descriptors import open_to_read

T = TypeVar("T")

_AT_ONCE = 2**20

STORES = (".zarr",)
"""Extensions of folders that are one file of another program."""


class Folder(base.Source):
    """All files below a folder. Links are followed, and each folder is visited once.

    Args:
        names: the files to list, if others in the folder do not belong to the source.
    """

    def __init__(self, path: Path, names: Collection[str] | None = None) -> None:
        super().__init__(path)
        self._names = names

    @staticmethod
    def recognizes(path: Path) -> bool:
        return base.is_folder(path)

    def entries(self) -> Iterator[base.Entry]:
        visited: set[tuple[int, int]] = set()
        real: list[tuple[str, str]] = [("", str(self.path.absolute()))]
        # Links come last: a folder is listed by its real name if it has one here.
        links: list[tuple[str, str]] = []
        while real or links:
            name, path = real.pop() if real else links.pop(0)
            try:
                with os.scandir(path) as dir_entries:
                    info = Path(path).stat()
                    if (info.st_dev, info.st_ino) in visited:
                        continue
                    visited.add((info.st_dev, info.st_ino))
                    children = sorted(dir_entries, key=lambda e: os.fsencode(e.name))
            except OSError:
                yield base.Entry(f"{name or '.'}/", 0, path, reasons.UNREADABLE)
                continue
            for child in children:
                relative = f"{name}/{child.name}" if name else child.name
                if _is_folder(child) and base.extension_of(child.name) not in STORES:
                    if not base.is_ignored_folder(child.name):
                        (links if child.is_symlink() else real).append((relative, child.path))
                elif child.name[0] != "." and (self._names is None or relative in self._names):
                    yield _file_entry(relative, child)

    def read(self, entry: base.Entry) -> bytes:
        # The file may have become a FIFO since it was listed.
        descriptor = open_to_read(entry.key)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise reasons.Unusable(reasons.IRREGULAR)
            if info.st_size > reasons.LARGEST_FILE:
                raise reasons.Unusable(reasons.TOO_LARGE)
            data = os.read(descriptor, info.st_size)
            while len(data) < info.st_size and (more := os.read(descriptor, _AT_ONCE)):
                data += more
            return data
        finally:
            os.close(descriptor)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):
        return entry.is_dir()
    return False


def _file_entry(name: str, child: os.DirEntry[str]) -> base.Entry:
    try:
        info = child.stat()
    except FileNotFoundError:
        return base.Entry(name, 0, child.path, reasons.VANISHED)
    except OSError:
        return base.Entry(name, 0, child.path, reasons.UNREADABLE)
    fault = "" if stat.S_ISREG(info.st_mode) else reasons.IRREGULAR
    return base.Entry(name, info.st_size, child.path, fault, changed=info.st_mtime_ns)


class SingleFile(Folder):
    """A single file."""

    def entries(self) -> Iterator[base.Entry]:
        yield base.Entry(self.path.name, self.path.stat().st_size, str(self.path))


class Scans(Folder):
    """Files of one format, which a source joins or splits: `PATH::SELECTION`.

    Attributes:
        package: the package of the extra `science` that reads the format.
        extensions: the extensions of the format.
        selection: the text after `::`.
    """

    package: str
    extensions: Sequence[str]

    def __init__(self, path: Path) -> None:
        extra_package(self.package, "science", f"{self.package} is needed to read {show(path)}")
        file, self.selection = base.split_selection(path)
        super().__init__(file)

    def describe_files(self, describe: Callable[[str], T]) -> Iterator[tuple[base.Entry, T | None]]:
        """Yield each file of the format, with None instead of a description if it has a fault."""
        files = SingleFile if base.is_file(self.path) else Folder
        for entry in files(self.path).entries():
            if base.extension_of(entry.name) in self.extensions or entry.name.endswith("/"):
                try:
                    yield entry, None if entry.fault else describe(entry.key)
                except reasons.Unusable as error:
                    yield entry._replace(fault=error.reason), None


SOURCE = Folder
