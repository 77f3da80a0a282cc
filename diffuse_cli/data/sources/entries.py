"""What every source gives: entries, the bytes of each, and what it says of samples itself."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from diffuse_cli.media import MEDIA, advice, by_extension
from diffuse_cli.media.file_errors import LARGEST_FILE, Unusable, refusing
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import show

HINT = "DATA is a folder, or a .zip, .tar, .parquet or .npy file, of images"


class Entry(NamedTuple):
    """A file of a source.

    Attributes:
        name: its relative path with `/`; with one at the end, that of a folder or shard that cannot
            be listed.
        size: in bytes, about.
        key: its name in the source.
        fault: the reason why it must not be opened, if any.
        label: the name of its class, empty if it has none; None where folders are classes.
    """

    name: str
    size: int
    key: str
    fault: str = ""
    label: str | None = None


class MetadataRow(NamedTuple):
    """What a source says of one sample: of which table and line, and each value by its column."""

    table: str
    line: int
    name: str
    values: Mapping[str, Any]


class Source:
    """The samples at a path, without hidden ones, and their contents.

    A process that decodes opens the source again by `path`, and gets entries that another listed.

    Attributes:
        path: as `open` takes it.
        origin: what can be typed for the same samples anywhere, for the model file; empty for what
            lies here.
        tables: names of tables that are part of the source, once `entries` has ended.
        portable: whether another process can open it.
        is_sample: whether its file is one sample where a sample is asked for.
    """

    origin: str = ""
    tables: tuple[str, ...] = ()
    portable: bool = True
    is_sample: bool = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether there is such a source at a path, where there may be anything, or nothing yet.

        It is cheap, and does without what `open` may need to import.
        """
        raise NotImplementedError

    @staticmethod
    def fetch(path: Path) -> Iterator[tuple[int, int]]:
        """Bring what is elsewhere here, and yield how many of how many files are here.

        Raises:
            DataError: it cannot be had.
        """
        yield from ()

    @classmethod
    def open(cls, path: Path) -> Source:
        """Return the source at a path, not yet listed.

        Raises:
            DataError: it cannot be read, or needs a package that is not installed.
        """
        return cls(path)

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> Iterator[Entry]:
        """Every file, in any order; names are unique.

        Raises:
            DataError: it cannot be listed at all.
        """
        raise NotImplementedError

    def read(self, entry: Entry) -> bytes:
        """The bytes of an entry without a fault; several threads read at once.

        Raises:
            Unusable: with the reason.
            OSError
        """
        raise NotImplementedError

    def read_table(self, entry: Entry, most: int) -> bytes:
        """The bytes, at most so many, of an entry that says something of samples.

        Raises:
            DataError: it cannot be used.
        """
        with refusing(entry.name):
            if entry.fault:
                raise Unusable(entry.fault)
            if entry.size > most:
                raise Unusable(f"over {most // 2**20} MiB")
            return self.read(entry)

    def told(self, wanted: Collection[str] | None) -> Iterator[MetadataRow]:
        """What its own tables say of samples. Every column is named; those that are not wanted may
        be None.

        Raises:
            DataError: a table is broken.
        """
        yield from ()

    def shapes(self) -> Collection[tuple[int, ...]]:
        """The shapes of arrays whose layout nothing says; those of files have the usual one."""
        return ()

    def close(self) -> None:
        """Close what `open` and `read` have opened."""


def is_ignored_folder(name: str) -> bool:
    return name.startswith(".") or name.endswith(".run") or name == "__MACOSX"


def plain_name(path: str) -> str:
    """The relative path of a member of an archive, without what leads out of it; empty for a hidden
    one, or a folder."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    ignored = any(is_ignored_folder(part) for part in parts[:-1])
    return "/".join(parts) if parts and not ignored and parts[-1][0] != "." else ""


def is_file(path: Path) -> bool:
    """Whether there is a file, of any path: a pattern is longer than a name can be."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether there is a folder, of any path."""
    return os.path.isdir(path)  # noqa: PTH112


def in_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def extension_of(base: str) -> str:
    """`.png` of `a.PNG`; faster than `Path.suffix`, for a million names."""
    stem, dot, extension = base.rpartition(".")
    return dot + extension.lower() if stem else ""


# -- shards ---------------------------------------------------------------------------------------

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
MOST_SHARDS = 100_000


def shards_at(path: Path, extension: str) -> list[Path] | None:
    """The files of an extension that a path stands for, in the byte order of their names: itself,
    those of a folder of shards, or of a pattern such as `a-{000..099}.tar` or `a-*.tar`.

    None if it stands for something else. Files that are written out in braces need not exist.
    """
    text = str(path)
    if is_folder(path):
        found = _in_folder(path, extension)
    elif extension_of(path.name) != extension:
        return None
    elif is_file(path):
        return [path]
    else:
        written = list(islice(_expanded(text), MOST_SHARDS))
        if any(character in text for character in "*?["):
            written = [name for each in written for name in glob.glob(each)]  # noqa: PTH207
        elif "{" not in text:
            return None
        found = [Path(name) for name in dict.fromkeys(written)]
    return sorted(found, key=os.fsencode) or None


def _in_folder(path: Path, extension: str) -> list[Path]:
    """The shards of a folder of nothing but shards; empty if it has folders or samples."""
    found, media = [], by_extension()
    with contextlib.suppress(OSError), os.scandir(str(path)) as children:
        for child in children:
            if child.name.startswith("."):
                continue
            kind = extension_of(child.name)
            if kind in media or (child.is_dir() and not is_ignored_folder(child.name)):
                return []
            if kind == extension and child.is_file():
                found.append(path / child.name)
    return found


def _expanded(text: str) -> Iterator[str]:
    """`a{0..2}` as `a0`, `a1`, `a2`, and `{a,b}c` as `ac`, `bc`, with several as in a shell."""
    parts = _BRACES.split(text)
    choices: list[Iterable[str]] = []
    for place, part in enumerate(parts):
        if place % 2 == 0:
            choices.append([part])
        elif match := _RANGE.fullmatch(part):
            first, last = map(int, match.groups())
            width = len(match[1]) if match[1][0] == "0" else 0
            choices.append([f"{k:0{width}d}" for k in range(first, min(last, first + 10**6) + 1)])
        else:
            choices.append(part.split(","))
    return map("".join, product(*choices))


def short_names(shards: Sequence[Path]) -> dict[Path, str]:
    """The file names of shards; their paths if these are not unique.

    Raises:
        DataError: a shard that was written out is not there.
    """
    for shard in shards:
        if not is_file(shard):
            raise DataError(f"no such file: {show(shard)}", "Check the numbers in braces")
    unique = len({shard.name for shard in shards}) == len(shards)
    return {shard: shard.name if unique else str(shard) for shard in shards}


# -- listing --------------------------------------------------------------------------------------

# Which files of a source are samples, in which order, and of which class.

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
    for name, kind in MEDIA.items():
        theirs = [e for e in found["image"] if extension_of(e.name) in kind.claimed]
        said = [*map(kind.claims, read_some(source, theirs, LOOKED_AT, LARGEST_FILE))]
        if said and all(said):
            taken = set(theirs)
            found["image"] = [e for e in found["image"] if e not in taken]
            found.setdefault(name, []).extend(theirs)
    chosen = medium or max(found, key=lambda name: len(found[name]))
    kept = [e for e in found.get(chosen, []) if _is_listed(e.name, samples)]
    others += sum(len(entries) for name, entries in found.items() if name != chosen)
    ordered = sorted([*kept, *unlisted], key=lambda e: in_bytes(e.name))
    listed = (*sorted(tables, key=in_bytes), *source.tables)
    return Listing(chosen, tuple(ordered), others, unread, listed, source.origin)


def read_some(
    source: Source, entries: Sequence[Entry], count: int, largest: int
) -> Iterator[bytes]:
    """The bytes of about so many entries, evenly among all, of those that can be read and are not
    larger."""
    for entry in entries[:: -(-len(entries) // count) or 1]:
        with contextlib.suppress(Unusable, OSError):
            if not entry.fault and entry.size <= largest:
                yield source.read(entry)


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
    parts = (name.partition("/") for name in below_common(names, candidates or names))
    return [folder if slash else "" for folder, slash, _ in parts]


def below_common(names: Sequence[str], every: Iterable[str]) -> list[str]:
    """Names below the folders that all of `every` share."""
    folders = {name.rpartition("/")[0] for name in every}
    shared = posixpath.commonpath(folders) if folders else ""
    return [name.removeprefix(f"{shared}/") for name in names]
