"""Tables of entries by name, to which other packages add through entry points.

A package that declares, for example,

    [project.entry-points."diffuse.samplers"]
    my-sampler = "my_package:my_sampler"

adds an entry to the table `samplers`. Looking it up imports it. Listing names does not. Whoever
loops over the entries of a table does not see those that cannot be loaded.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import warnings
from collections.abc import (
    Callable,
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    ValuesView,
)
from difflib import get_close_matches
from importlib.abc import InspectLoader
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

Entry = TypeVar("Entry")


@functools.cache
def extension_points() -> Mapping[str, Mapping[str, EntryPoint]]:
    """Return the entry points of the groups `diffuse.GROUP`, by GROUP and name.

    They are read only once, because reading one group reads the metadata of every package.
    """
    points = entry_points()
    return {
        group.removeprefix("diffuse."): {point.name: point for point in points.select(group=group)}
        for group in points.groups
        if group.startswith("diffuse.")
    }


def _load(point: EntryPoint) -> Any:
    """Import the object that an entry point names.

    Raises:
        InvalidArgument: the package cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # the import runs code of another package
        package = point.dist.name if point.dist else point.value
        text = f"the extension {package} cannot be loaded: {type(error).__name__}: {error}"
        raise InvalidArgument(text, "Update it, or uninstall it") from error


class Registry(MutableMapping[str, Entry]):
    """Table of entries by name: built-in entries, then entries of other packages.

    If both use a name, the built-in entry counts.

    Args:
        group: the table's name in entry points.
        entries: the built-in entries.
        aliases: current names by former names. Former names still work, but are not listed.
    """

    def __init__(
        self, group: str, entries: Mapping[str, Any], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.group, self.entries, self.aliases = group, dict(entries), aliases or {}

    def current(self, name: str) -> str:
        """Return the current name of an entry, from its current or a former name."""
        return self.aliases.get(name, name)

    def __getitem__(self, name: str) -> Entry:
        name = self.current(name)
        entry = self.entries[name] if name in self.entries else _load(self._extensions[name])
        return cast(Entry, entry)

    @property
    def _extensions(self) -> Mapping[str, EntryPoint]:
        """The entries of other packages."""
        return extension_points().get(self.group, {})

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries or name in self.aliases or name in self._extensions

    def __iter__(self) -> Iterator[str]:
        return iter({**self.entries, **self._extensions})

    def __len__(self) -> int:
        return len({**self.entries, **self._extensions})

    def items(self) -> ItemsView[str, Entry]:
        """Return the names and entries. Extensions that cannot be loaded are skipped with a
        `SkippedExtension` warning."""
        return _Loaded(self)

    def values(self) -> ValuesView[Entry]:
        """Return the entries of `items`."""
        return dict(self.items()).values()


class SkippedExtension(UserWarning):
    """Warning about an extension that cannot be loaded, and is left out of a table."""


class _Loaded(ItemsView[str, Entry]):
    """Names and entries of a table, each loaded when the loop reaches it."""

    _mapping: Mapping[str, Entry]

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        for name in self._mapping:
            try:
                entry = self._mapping[name]
            except InvalidArgument as error:
                warnings.warn(str(error), SkippedExtension, stacklevel=2)
            else:
                yield name, entry


def entries_by_name(*entries: Callable[..., Any]) -> dict[str, Any]:
    """Return functions by their names: `min_snr` is the entry `min-snr`."""
    return {entry.__name__.replace("_", "-"): entry for entry in entries}


class Modules(Registry[Entry]):
    """Table of the modules of a package, or of one value in each, imported on look-up.

    `some_name.py` is the entry `some-name`. Files that start with an underscore are not listed.

    Args:
        group: the table's name in entry points.
        package: `__name__` of the package.
        path: its `__path__`.
        helpers: modules of the package that are not entries, although other packages import them.
        value: the name of the value in each module that is the entry. If empty, the module is.
        aliases: see `Registry`. An entry is listed where its former name would be.
    """

    def __init__(
        self,
        group: str,
        package: str,
        path: list[str],
        helpers: Collection[str] = (),
        value: str = "",
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.value = value
        files = [info.name for info in pkgutil.iter_modules(path) if info.name[0] != "_"]
        before = {new: old for old, new in (aliases or {}).items()}
        own_files = set(files).difference(helpers)
        entries = sorted(own_files, key=lambda f: before.get(f.replace("_", "-"), f))
        modules = {f.replace("_", "-"): f"{package}.{f}" for f in entries}
        super().__init__(group, modules, aliases)

    def __getitem__(self, name: str) -> Entry:
        entry: Any = super().__getitem__(name)
        if isinstance(entry, str):
            entry = importlib.import_module(entry)
        if self.value and not hasattr(entry, self.value):
            text = f"the extension {name} cannot be loaded: it has no {self.value}"
            raise InvalidArgument(text, "Update it, or uninstall it")
        return cast(Entry, getattr(entry, self.value) if self.value else entry)

    def read_summary(self, name: str) -> str:
        """Return the first paragraph of an entry's docstring.

        For a module it is read from the source, because importing the module may be slow. For a
        broken extension it is the error.
        """
        module = self.entries[name] if name in self.entries else self._extensions[name].value
        try:
            if isinstance(module, str) and (tree := _parse_source(module)) is not None:
                text = ast.get_docstring(tree)
            else:
                text = inspect.getdoc(self[name])
        except InvalidArgument as error:
            text = str(error)
        return (text or "").split("\n\n")[0]


def _parse_source(module: str) -> ast.Module | None:
    """Return the syntax tree of a module, without importing it, or None if it has no source."""
    with contextlib.suppress(Exception):  # a broken package or source, or not the name of a module
        spec = importlib.util.find_spec(module)
        loader = spec.loader if spec else None
        source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
        return None if source is None else ast.parse(source)
    return None


# -- errors ---------------------------------------------------------------------------------------

# The core's exception, and look-ups that raise it.


class InvalidArgument(ValueError):
    """A wrong argument.

    Attributes:
        argument: its name, or an empty string if several are wrong.
        problem: the description of the error. If `argument` is set, it continues after the name.
        hint: the advice to the caller.
        code: the kind of error for a caller that reports it.
    """

    def __init__(
        self, problem: str, hint: str = "", *, argument: str = "", code: str = "invalid_value"
    ) -> None:
        super().__init__(problem)
        self.argument, self.problem, self.hint, self.code = argument, problem, hint, code

    def message(self, name: str) -> str:
        """Return the description of the error, with `name` for the argument."""
        if not self.argument:
            return self.problem
        return f"{name}{'' if self.problem.startswith(':') else ' '}{self.problem}"

    def __str__(self) -> str:
        text = self.message(self.argument)
        return f"{text}. {self.hint}" if self.hint else text


def closest_name(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the most similar of `names`, or an empty string if none is similar enough."""
    return next(iter(get_close_matches(name, list(names), n=1, cutoff=cutoff)), "")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown name: the most similar name, or the list of all names."""
    names = list(names)
    closest = closest_name(name, names)
    return f"Did you mean '{closest}'?" if closest else "Choose from: " + ", ".join(names)


def lookup(table: Mapping[str, Entry], name: str, argument: str) -> Entry:
    """Return `table[name]`.

    Raises:
        InvalidArgument: no such entry. The hint is the most similar name, or all names.
    """
    try:
        return table[name]
    except KeyError:
        text, hint = f": there is no '{name}'", suggest(name, table)
        raise InvalidArgument(text, hint, argument=argument, code="unknown_name") from None
