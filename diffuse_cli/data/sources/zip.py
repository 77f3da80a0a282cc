"""A zip file, read without unpacking to disk."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from diffuse_cli.data.sources.entries import HINT, Entry, Source, extension_of, is_file, plain_name
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media import media_by_extension
from diffuse_cli.media.file_errors import LARGEST_FILE, Unusable
from diffuse_cli.system import file_types
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import show
from diffuse_cli.system.memory import raise_if_full

_AT_ONCE = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""With other methods, zipfile unpacks a whole member for any read."""


class Zip(Source):
    """Members of a zip file."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether the file is a zip that is not a torch model, or one with samples."""
        kind = file_types.recognize_path(path) if is_file(path) else ""
        if kind != file_types.TORCH:
            return kind == file_types.ZIP
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:  # damaged, but it starts like a torch model
            raise_if_full(error)
            return False
        readers = media_by_extension()
        return any(extension_of(name.rpartition("/")[2]) in readers for name in names)

    @classmethod
    def open(cls, path: Path) -> Zip:
        try:
            return cls(path)
        except Exception as error:
            raise_if_full(error)
            raise DataError(f"cannot read the zip file {show(path)}: {error}", HINT) from error

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = zipfile.ZipFile(path)

    def entries(self) -> Iterator[Entry]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._file.infolist():
            if not info.is_dir() and (name := plain_name(info.filename)):
                members[name] = info  # the last of a name, like unzip
        for name, info in members.items():
            yield Entry(name, info.file_size, info.filename, _member_fault(info))

    def read(self, entry: Entry) -> bytes:
        try:
            with self._file.open(entry.key) as file:
                # A single read would unpack more than the member's declared size.
                return b"".join(iter(partial(file.read, _AT_ONCE), b""))
        except Exception as error:
            raise_if_full(error)
            unread = isinstance(error, RuntimeError) or getattr(error, "errno", None)
            raise Unusable(reasons.UNREADABLE if unread else reasons.CORRUPT) from None

    def close(self) -> None:
        self._file.close()


def _member_fault(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 0x1:
        return reasons.ENCRYPTED
    if info.file_size > LARGEST_FILE:
        return reasons.TOO_LARGE
    if info.compress_type not in _METHODS:
        return reasons.COMPRESSION
    return reasons.IRREGULAR if kind not in (0, stat.S_IFREG) else ""


SOURCE = Zip
