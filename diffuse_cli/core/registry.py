"""Tables of entries by name, to which other packages add through entry points.

A package that declares, for example,

    [project.entry-points."diffuse.samplers"]
    my-sampler = "my_package:my_sampler"

adds an entry to the table of that group. It is imported when its name is looked up.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

Entry = TypeVar("Entry")


@functools.cache
def added(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of other packages in a group, by name."""
    return {point.name: point for point in entry_points(group=f"diffuse.{group}")}


class Registry(dict[str, Entry]):
    """Entries by name; our own come first, and win over another package's of the same name.

    Args:
        group: the table's name: entry points of the group `diffuse.GROUP` are entries too.
        entries: our own.
    """

    def __init__(self, group: str, entries: Mapping[str, Entry]) -> None:
        super().__init__(entries)
        self.group = group

    def __missing__(self, name: str) -> Entry:
        entry = cast(Entry, added(self.group)[name].load())
        self[name] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in added(self.group)

    def __iter__(self) -> Iterator[str]:
        own = list(super().__iter__())
        return iter([*own, *(name for name in added(self.group) if name not in own)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def keys(self) -> Any:
        """The names, without importing what they stand for."""
        return list(self)

    def values(self) -> Any:
        """The entries."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """Names with entries."""
        return [(name, self[name]) for name in self]


class Modules(Mapping[str, Entry]):
    """The modules of a package by name, imported when looked up, and entry points beside them.

    `some_name.py` is `some-name`; a file that starts with an underscore is not listed.

    Args:
        group: as for `Registry`.
        package, path: `__name__` and `__path__` of the package.
    """

    def __init__(self, group: str, package: str, path: list[str]) -> None:
        self.group = group
        self._package = package
        self._files = {
            info.name.replace("_", "-"): info.name
            for info in pkgutil.iter_modules(path)
            if not info.name.startswith("_")
        }

    def __getitem__(self, name: str) -> Entry:
        if name in self._files:
            return cast(Entry, importlib.import_module(f"{self._package}.{self._files[name]}"))
        return cast(Entry, added(self.group)[name].load())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._files, *added(self.group)}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in added(self.group)
