"""A zip file, read without unpacking to disk."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from diffuse_cli.data.sources import base
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import DataError, file_types, raise_if_full, show


class Zip(base.Source):
    """Members of a zip file."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether the file is a zip that is not a torch model, or one with samples."""
        kind = file_types.recognize_path(path) if base.is_file(path) else ""
        if kind != file_types.TORCH:
            return kind == file_types.ZIP
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:  # damaged, but it starts like a torch model
            raise_if_full(error)
            return False
        readers = media_by_extension()
        return any(base.extension_of(name.rpartition("/")[2]) in readers for name in names)

    @classmethod
    def open(cls, path: Path) -> Zip:
        try:
            return cls(path)
        except Exception as error:
            raise_if_full(error)
            text = f"cannot read the zip file {show(path)}: {error}"
            raise DataError(text, base.HINT, code="data_unreadable", path=path) from error

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = zipfile.ZipFile(path)

    def entries(self) -> Iterator[base.Entry]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._file.infolist():
            if not info.is_dir() and (name := base.plain_name(info.filename)):
                members[name] = info  # the last of a name, like unzip
        for name, info in members.items():
            yield base.Entry(name, info.file_size, info.filename, reasons.member_fault(info))

    def read(self, entry: base.Entry) -> bytes:
        try:
            with self._file.open(entry.key) as file:
                return reasons.read_member(file)
        except Exception as error:
            raise_if_full(error)
            unread = isinstance(error, RuntimeError) or getattr(error, "errno", None)
            raise reasons.Unusable(reasons.UNREADABLE if unread else reasons.CORRUPT) from None

    def close(self) -> None:
        self._file.close()


SOURCE = Zip
