"""Tables whose entries are the files of a folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

Entry = TypeVar("Entry", covariant=True)


class Modules(Mapping[str, Entry]):
    """The modules of a package by name, imported when looked up.

    `some_name.py` is `some-name`; a file that starts with an underscore is not listed.
    """

    def __init__(self, package: str, path: list[str]) -> None:
        self._package = package
        self._files = {
            info.name.replace("_", "-"): info.name
            for info in pkgutil.iter_modules(path)
            if not info.name.startswith("_")
        }

    def __getitem__(self, name: str) -> Entry:
        return cast(Entry, importlib.import_module(f"{self._package}.{self._files[name]}"))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files
