"""Tables of entries by name, to which other packages add through entry points.

A package that declares, for example,

    [project.entry-points."diffuse.samplers"]
    my-sampler = "my_package:my_sampler"

adds an entry to the table `samplers`. It is imported when it is looked up, not when names are
listed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from difflib import get_close_matches
from importlib.abc import InspectLoader
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

Entry = TypeVar("Entry")


@functools.cache
def added() -> Mapping[str, Mapping[str, EntryPoint]]:
    """The entry points of the groups `diffuse.GROUP`, by GROUP and name.

    All at once: what every installed package declares is read for any.
    """
    points = entry_points()
    return {
        group.removeprefix("diffuse."): {point.name: point for point in points.select(group=group)}
        for group in points.groups
        if group.startswith("diffuse.")
    }


def _loaded(point: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        InvalidArgument: its package is broken.
    """
    try:
        return point.load()
    except Exception as error:  # it may be anything
        package = point.dist.name if point.dist else point.value
        raise InvalidArgument(
            f"the extension {package} cannot be loaded: {type(error).__name__}: {error}",
            "Update it, or uninstall it",
        ) from error


class Registry(MutableMapping[str, Entry]):
    """Entries by name: our own, then those of other packages under names that we do not use.

    Args:
        group: the table's name in entry points.
        own: our entries.
        aliases: the names of entries by the names that they had before, which are not listed.
    """

    def __init__(
        self, group: str, own: Mapping[str, Any], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.group, self.own, self.aliases = group, dict(own), aliases or {}

    def current(self, name: str) -> str:
        """Return the name under which an entry is listed, from this one or one that it had."""
        return self.aliases.get(name, name)

    def __getitem__(self, name: str) -> Entry:
        name = self.current(name)
        return cast(Entry, self.own[name] if name in self.own else _loaded(self._added[name]))

    @property
    def _added(self) -> Mapping[str, EntryPoint]:
        """The entries of other packages."""
        return added().get(self.group, {})

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.own[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.own[name]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.aliases or name in self._added

    def __iter__(self) -> Iterator[str]:
        return iter({**self.own, **self._added})

    def __len__(self) -> int:
        return len({**self.own, **self._added})


def by_name(*entries: Callable[..., Any]) -> dict[str, Any]:
    """Return functions by their names: `min_snr` is the entry `min-snr`."""
    return {entry.__name__.replace("_", "-"): entry for entry in entries}


class Modules(Registry[Entry]):
    """The modules of a package, or one value of each, imported when it is looked up.

    `some_name.py` is `some-name`; a file that starts with an underscore is not listed.

    Args:
        group: the table's name in entry points.
        package: `__name__` of the package.
        path: its `__path__`.
        helpers: modules of the package that are not entries, though other packages import them.
        value: the name of the value in a module that is its entry; empty for the module.
        aliases: see `Registry`; an entry keeps the place of its old name.
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
        own = {f.replace("_", "-"): f"{package}.{f}" for f in entries}
        super().__init__(group, own, aliases)

    def __getitem__(self, name: str) -> Entry:
        found: Any = super().__getitem__(name)
        if isinstance(found, str):
            found = importlib.import_module(found)
        if self.value and not hasattr(found, self.value):
            text = f"the extension {name} cannot be loaded: it has no {self.value}"
            raise InvalidArgument(text, "Update it, or uninstall it")
        return cast(Entry, getattr(found, self.value) if self.value else found)

    def about(self, name: str) -> str:
        """The first paragraph of an entry's docstring; that of a module, which may import much, is
        read from its source. An extension that is broken says so."""
        module = self.own[name] if name in self.own else self._added[name].value
        try:
            if isinstance(module, str) and (source := _source(module)) is not None:
                text = ast.get_docstring(ast.parse(source))
            else:
                text = inspect.getdoc(self[name])
        except InvalidArgument as error:
            text = str(error)
        return (text or "").split("\n\n")[0]


def _source(module: str) -> str | None:
    """The text of a module that need not be imported for it, if there is one."""
    with contextlib.suppress(Exception):  # a package around it that is broken, or no module's name
        spec = importlib.util.find_spec(module)
        loader = spec.loader if spec else None
        return loader.get_source(module) if isinstance(loader, InspectLoader) else None
    return None


# -- errors ---------------------------------------------------------------------------------------

# The core's error, and look-ups that raise it.


class InvalidArgument(ValueError):
    """A wrong argument.

    Attributes:
        argument: its name; empty if several are to blame.
        problem: what is wrong; if there is an argument, the text that follows its name.
        hint: what to do instead.
    """

    def __init__(self, problem: str, hint: str = "", *, argument: str = "") -> None:
        super().__init__(problem)
        self.argument, self.problem, self.hint = argument, problem, hint

    def message(self, name: str) -> str:
        """What is wrong, with the argument called `name`."""
        if not self.argument:
            return self.problem
        return f"{name}{'' if self.problem.startswith(':') else ' '}{self.problem}"

    def __str__(self) -> str:
        text = self.message(self.argument)
        return f"{text}. {self.hint}" if self.hint else text


def near(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the most similar of `names`, or an empty string if none is similar enough."""
    return next(iter(get_close_matches(name, list(names), n=1, cutoff=cutoff)), "")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a hint after an unknown name: the nearest known one, or all of them."""
    names = list(names)
    found = near(name, names)
    return f"Did you mean '{found}'?" if found else "Choose from: " + ", ".join(names)


def lookup(table: Mapping[str, Entry], name: str, argument: str) -> Entry:
    """`table[name]`.

    Raises:
        InvalidArgument: no such entry; the hint names the nearest, or all.
    """
    try:
        return table[name]
    except KeyError:
        raise InvalidArgument(
            f": there is no '{name}'", suggest(name, table), argument=argument
        ) from None
