"""Which files of a source are samples, in which order, and of which class."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from diffuse_cli.data.sources.entries import Entry, Source, extension_of, in_bytes
from diffuse_cli.media import advice, by_extension, claiming
from diffuse_cli.media.file_errors import Unusable

TABLES = ("metadata.csv", "metadata.jsonl")
"""Names of tables that say something of the samples beside them."""

LOOKED_AT = 8
"""Files that say whether another medium claims those of their extension."""

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "diffuse.samples"


@dataclass(frozen=True)
class Listing:
    """The files that a medium reads, in the byte order of their names. `others` counts the rest,
    and `unread`, by extension, those of them that there is advice for; `tables` are the names of
    those in `TABLES`, which are not counted, and of the source's own; `origin` is the source's."""

    medium: str
    candidates: tuple[Entry, ...]
    others: int
    unread: Mapping[str, int]
    tables: tuple[str, ...] = ()
    origin: str = ""


def list_samples(source: Source, medium: str | None = None) -> Listing:
    """The files of `source` that a medium reads, by extension; by default the medium of most files.

    Of a folder that `diffuse sample` wrote, only the samples, not the grid.
    """
    readers, known = by_extension(), advice()
    found: dict[str, list[Entry]] = {"image": []}
    unlisted: list[Entry] = []
    samples: dict[str, frozenset[str]] = {}
    others, unread, tables = 0, Counter[str](), list[str]()
    for entry in source.entries():
        folder, _, base = entry.name.rpartition("/")
        if not base:  # a folder that cannot be listed
            unlisted.append(entry)
        elif reader := readers.get(extension := extension_of(base)):
            found.setdefault(reader, []).append(entry)
        elif base in TABLES:
            tables.append(entry.name)
        else:
            others += 1
            if extension in known:
                unread[extension] += 1
            if base == MANIFEST and not entry.fault and (names := _read_manifest(source, entry)):
                samples[folder] = names
    for name, (extensions, claims) in claiming().items():
        theirs = [e for e in found["image"] if extension_of(e.name) in extensions]
        if theirs and _claimed(source, theirs, claims):
            taken = set(theirs)
            found["image"] = [e for e in found["image"] if e not in taken]
            found.setdefault(name, []).extend(theirs)
    chosen = medium or max(found, key=lambda name: len(found[name]))
    kept = [e for e in found.get(chosen, []) if _is_listed(e.name, samples)]
    others += sum(len(entries) for name, entries in found.items() if name != chosen)
    ordered = sorted([*kept, *unlisted], key=lambda e: in_bytes(e.name))
    listed = (*sorted(tables, key=in_bytes), *source.tables)
    return Listing(chosen, tuple(ordered), others, unread, listed, source.origin)


def _claimed(source: Source, entries: Sequence[Entry], claims: Callable[[bytes], bool]) -> bool:
    """Whether a medium claims all of a few files, evenly among all, that can be read."""
    said = list[bool]()
    for entry in entries[:: -(-len(entries) // LOOKED_AT)]:
        with contextlib.suppress(Unusable, OSError):
            said += [] if entry.fault else [claims(source.read(entry))]
    return bool(said) and all(said)


def _is_listed(name: str, samples: dict[str, frozenset[str]]) -> bool:
    folder, _, base = name.rpartition("/")
    return folder not in samples or base in samples[folder]


def _read_manifest(source: Source, entry: Entry) -> frozenset[str]:
    """The names in a manifest of samples; empty for another file of that name."""
    try:
        manifest = json.loads(source.read(entry))
        if manifest["format"] == MANIFEST_FORMAT:
            return frozenset(map(str, manifest["images"]))
    except (Unusable, OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    return frozenset()


def classes_of(
    names: Sequence[str], candidates: Sequence[Entry]
) -> tuple[list[int], tuple[str, ...]]:
    """Labels of the samples of `names`, and the class names in byte order; -1 for no class.

    If the source labels any of the `candidates`, its labels are the classes. Otherwise a class is a
    folder directly below the common folder of all candidates.
    """
    given = {e.name: e.label or "" for e in candidates if e.label is not None}
    if given:
        own = [given.get(name, "") for name in names]
    else:
        own = folder_classes(names, [e.name for e in candidates])
    class_names = sorted({name for name in own if name}, key=in_bytes)
    index = {"": -1} | {name: k for k, name in enumerate(class_names)}
    return [index[name] for name in own], tuple(class_names)


def folder_classes(names: Sequence[str], candidates: Sequence[str] | None = None) -> list[str]:
    """The folder of each, directly below the common folder of all candidates, or of all `names`;
    empty for files directly in that."""
    folders = {name.rpartition("/")[0] for name in candidates or names}
    levels = zip(*(folder.split("/") if folder else () for folder in folders), strict=False)
    depth = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    parts = [name.split("/")[depth:] for name in names]
    return [part[0] if len(part) > 1 else "" for part in parts]
