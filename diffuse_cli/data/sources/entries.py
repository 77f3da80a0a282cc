"""Base class of sources, and their entries and listings."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from diffuse_cli.media import MEDIA, advice, media_by_extension
from diffuse_cli.media.file_errors import LARGEST_FILE, Unusable, require_usable
from diffuse_cli.media.file_errors import extension_of as extension_of

HINT = "DATA is a folder, or a .zip, .tar, .parquet or .npy file, of images"

TABLES = ("metadata.csv", "metadata.jsonl")
"""Names of metadata tables of the samples next to them."""

LOOKED_AT = 8
"""Number of files that decide whether another medium claims the files of an extension."""

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "diffuse.samples"


class Entry(NamedTuple):
    """File of a source.

    Attributes:
        name: the relative path with `/`. A `/` at the end marks a folder or shard that cannot be
            listed.
        size: the approximate size in bytes.
        key: the key by which the source reads the file.
        fault: the reason why it must not be opened, if any.
        label: the name of its class, empty if it has none; None where folders are classes.
        changed: nanoseconds of the last change of the file, or 0.
    """

    name: str
    size: int
    key: str
    fault: str = ""
    label: str | None = None
    changed: int = 0


class MetadataRow(NamedTuple):
    """Metadata of one sample: its table and line, and the value of each column."""

    table: str
    line: int
    name: str
    values: Mapping[str, Any]


class Source:
    """Samples at a path, except hidden files, and their contents.

    Another process can open the source again by `path`, and read entries that this one has listed.

    Attributes:
        path: the path that was passed to `open`.
        origin: a name to pass for the same samples on any machine, which the model file keeps.
            Empty for local samples.
        tables: names of tables that are part of the source, once `entries` is exhausted.
        is_sample: whether its file counts as one sample where a single sample is allowed.
    """

    origin: str = ""
    tables: tuple[str, ...] = ()
    is_sample: bool = False

    @staticmethod
    def recognizes(path: Path) -> bool:
        """Whether there is a source of this kind at a path, which need not exist.

        This is cheap, and imports none of the optional packages that `open` needs.
        """
        raise NotImplementedError

    @staticmethod
    def fetch(path: Path) -> Iterator[tuple[int, int]]:
        """Download the files of a remote source, and yield the number of files here and of all.

        Raises:
            DataError: a file cannot be downloaded.
        """
        yield from ()

    @classmethod
    def open(cls, path: Path) -> Source:
        """Return the source at a path, not yet listed.

        Raises:
            DataError: the source cannot be read, or needs a package that is not installed.
        """
        return cls(path)

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> Iterator[Entry]:
        """Yield every file, in any order. Names are unique.

        Raises:
            DataError: the source cannot be listed at all.
        """
        raise NotImplementedError

    def read(self, entry: Entry) -> bytes:
        """Return the bytes of an entry without a fault. Several threads may read at once.

        Raises:
            Unusable: the entry holds no usable sample.
            OSError: the entry cannot be read.
        """
        raise NotImplementedError

    def read_table(self, entry: Entry, max_bytes: int) -> bytes:
        """Return the bytes of a table of metadata, at most `max_bytes` bytes.

        Raises:
            DataError: the table is unusable or too large.
        """
        with require_usable(entry.name):
            if entry.fault:
                raise Unusable(entry.fault)
            if entry.size > max_bytes:
                raise Unusable(f"over {max_bytes // 2**20} MiB")
            return self.read(entry)

    def read_rows(self, selection: Collection[str] | None) -> Iterator[MetadataRow]:
        """Yield the rows of the source's own tables.

        Each row has every column. The values of columns outside the selection may be None.

        Raises:
            DataError: a table is broken.
        """
        yield from ()

    def close(self) -> None:
        """Close the files that `open` and `read` have opened."""


def is_ignored_folder(name: str) -> bool:
    """Whether a folder is hidden, a run directory, or added by macOS."""
    return name.startswith(".") or name.endswith(".run") or name == "__MACOSX"


def plain_name(path: str) -> str:
    """Return the relative path of a member of an archive, without parts that lead out of it.

    Empty for a hidden file and for a folder.
    """
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    ignored = any(is_ignored_folder(part) for part in parts[:-1])
    return "/".join(parts) if parts and not ignored and parts[-1][0] != "." else ""


def is_file(path: Path) -> bool:
    """Whether a path is a file. The path may be a pattern longer than a name can be."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a path is a folder. The path may be a pattern longer than a name can be."""
    return os.path.isdir(path)  # noqa: PTH112


def encode_name(name: str) -> bytes:
    """Return the bytes of a file name, also of one that is not UTF-8."""
    return name.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Listing:
    """Files of a source that a medium reads.

    Attributes:
        medium: a name in `MEDIA`.
        candidates: the files, in the byte order of their names.
        others: the number of other files, without tables.
        unread: the number of other files that `advice` covers, by extension.
        tables: the names of metadata tables, and of the source's own tables.
        origin: the `origin` of the source.
    """

    medium: str
    candidates: tuple[Entry, ...]
    others: int
    unread: Mapping[str, int]
    tables: tuple[str, ...] = ()
    origin: str = ""


def list_samples(source: Source, medium: str | None = None) -> Listing:
    """List the files of `source` that a medium reads, by default the medium of most files.

    In a folder that `diffuse sample` wrote, only the samples count, not the grid.
    """
    readers, hints = media_by_extension(), advice()
    by_medium: dict[str, list[Entry]] = {"image": []}
    unlisted: list[Entry] = []
    samples: dict[str, frozenset[str]] = {}
    num_others, unread, tables = 0, Counter[str](), list[str]()
    changed = source.path.stat().st_mtime_ns if is_file(source.path) else 0
    for entry in source.entries():
        if changed:
            entry = entry._replace(changed=changed)
        folder, _, base = entry.name.rpartition("/")
        if not base:  # a folder that cannot be listed
            unlisted.append(entry)
        elif reader := readers.get(extension := extension_of(base)):
            by_medium.setdefault(reader, []).append(entry)
        elif base in TABLES:
            tables.append(entry.name)
        else:
            num_others += 1
            if extension in hints:
                unread[extension] += 1
            if base == MANIFEST and not entry.fault and (names := _read_manifest(source, entry)):
                samples[folder] = names
    for name, kind in MEDIA.items():
        claimed = [e for e in by_medium["image"] if extension_of(e.name) in kind.claimed]
        claims = [*map(kind.claims, read_subset(source, claimed, LOOKED_AT, LARGEST_FILE))]
        if claims and all(claims):
            claimed_set = set(claimed)
            by_medium["image"] = [e for e in by_medium["image"] if e not in claimed_set]
            by_medium.setdefault(name, []).extend(claimed)
    chosen = medium or max(by_medium, key=lambda name: len(by_medium[name]))
    sample_entries = [e for e in by_medium.get(chosen, []) if _is_listed(e.name, samples)]
    num_others += sum(len(entries) for name, entries in by_medium.items() if name != chosen)
    ordered = sorted([*sample_entries, *unlisted], key=lambda e: encode_name(e.name))
    listed = (*sorted(tables, key=encode_name), *source.tables)
    return Listing(chosen, tuple(ordered), num_others, unread, listed, source.origin)


def read_subset(source: Source, entries: Sequence[Entry], count: int, size: int) -> Iterator[bytes]:
    """Yield the bytes of `count` random entries, always the same ones, in order.

    Entries that are larger than `size`, or cannot be read, are left out.
    """
    chosen = Random(0).sample(range(len(entries)), min(count, len(entries)))
    for entry in (entries[row] for row in sorted(chosen)):
        with contextlib.suppress(Unusable, OSError):
            if not entry.fault and entry.size <= size:
                yield source.read(entry)


def _is_listed(name: str, samples: dict[str, frozenset[str]]) -> bool:
    folder, _, base = name.rpartition("/")
    return folder not in samples or base in samples[folder]


def _read_manifest(source: Source, entry: Entry) -> frozenset[str]:
    """Return the file names in a manifest of samples, or none for another file of that name."""
    try:
        manifest = json.loads(source.read(entry))
        if manifest["format"] == MANIFEST_FORMAT:
            return frozenset(map(str, manifest["images"]))
    except (Unusable, OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    return frozenset()


def find_classes(
    names: Sequence[str], candidates: Sequence[Entry]
) -> tuple[list[int], tuple[str, ...]]:
    """Return the labels of named samples, -1 for no class, and the class names in byte order.

    If the source labels any of the `candidates`, its labels are the classes. Otherwise a class is a
    folder directly below the common folder of all candidates.
    """
    given = {e.name: e.label or "" for e in candidates if e.label is not None}
    if given:
        sample_classes = [given.get(name, "") for name in names]
    else:
        sample_classes = folder_classes(names, [e.name for e in candidates])
    class_names = sorted({name for name in sample_classes if name}, key=encode_name)
    index = {"": -1} | {name: k for k, name in enumerate(class_names)}
    return [index[name] for name in sample_classes], tuple(class_names)


def folder_classes(names: Sequence[str], candidates: Sequence[str] | None = None) -> list[str]:
    """Return the folder of each file, directly below the common folder of all candidates.

    Empty for files directly in the common folder. Without candidates, `names` are all files.
    """
    parts = (name.partition("/") for name in strip_common_folder(names, candidates or names))
    return [folder if slash else "" for folder, slash, _ in parts]


def strip_common_folder(names: Sequence[str], every: Iterable[str]) -> list[str]:
    """Return names relative to the folders that all of `every` share."""
    folders = {name.rpartition("/")[0] for name in every}
    shared = posixpath.commonpath(folders) if folders else ""
    return [name.removeprefix(f"{shared}/") for name in names]
