"""Base class of sources, their entries, and the shards of a source that is split."""

from __future__ import annotations

import contextlib
import glob
import os
import posixpath
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from diffuse_cli.media import Unusable, media_by_extension
from diffuse_cli.media.file_errors import extension_of as extension_of
from diffuse_cli.media.file_errors import require_usable
from diffuse_cli.system import DataError, show

HINT = "DATA is a folder, or a .zip, .tar, .parquet or .npy file, of images"

SEPARATOR = "::"
"""Separator of a file or folder and the part of it that is DATA."""

KEPT_BYTES = 2**28
"""Bytes of recently read blocks that are kept."""

TABLES = ("metadata.csv", "metadata.jsonl")
"""Names of metadata tables of the samples next to them."""


MANIFEST, MANIFEST_FORMAT = "manifest.json", "diffuse.samples"
"""Name and format of the file in which `diffuse sample` lists its samples."""


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
        layout: the axes of each sample, if the source knows them.
        quantities: as in `Space`, once `entries` has begun.
        is_sample: whether its file counts as one sample where a single sample is allowed.
    """

    origin: str = ""
    tables: tuple[str, ...] = ()
    layout: str | None = None
    quantities: tuple[str, ...] = ()
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
        with require_usable(entry.name, code="metadata_unreadable"):
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


class Blocks:
    """Cache of decoded blocks by their place, within `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._bytes = 0

    def get(self, place: Any) -> Any:
        if place in self._kept:
            self._kept.move_to_end(place)
        return self._kept.get(place)

    def add(self, place: Any, block: Any) -> None:
        if (before := self._kept.pop(place, None)) is not None:
            self._bytes -= before.nbytes
        self._kept[place] = block
        self._bytes += block.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def split_selection(path: Path) -> tuple[Path, str]:
    """Return the file or folder of `PATH::SELECTION`, and the selection, which may be empty."""
    file, _, selection = str(path).partition(SEPARATOR)
    return Path(file), selection


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


_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
MOST_SHARDS = 100_000


def shards_at(path: Path, extension: str) -> list[Path] | None:
    """Return the shards with an extension at a path, in the byte order of their names.

    The path is a shard, a folder of shards, or a pattern such as `a-{000..099}.tar` or `a-*.tar`.
    None for any other path. Files that are written out in braces need not exist.
    """
    text = str(path)
    if is_folder(path):
        shards = _list_shards(path, extension)
    elif extension_of(path.name) != extension:
        return None
    elif is_file(path):
        return [path]
    else:
        written = list(islice(_expand_braces(text), MOST_SHARDS))
        if any(character in text for character in "*?["):
            written = [name for pattern in written for name in glob.glob(pattern)]  # noqa: PTH207
        elif "{" not in text:
            return None
        shards = [Path(name) for name in dict.fromkeys(written)]
    return sorted(shards, key=os.fsencode) or None


def _list_shards(path: Path, extension: str) -> list[Path]:
    """Return the shards in a folder, or an empty list if it also has folders or samples."""
    shards, media = [], media_by_extension()
    with contextlib.suppress(OSError), os.scandir(str(path)) as children:
        for child in children:
            if child.name.startswith("."):
                continue
            kind = extension_of(child.name)
            if kind in media or (child.is_dir() and not is_ignored_folder(child.name)):
                return []
            if kind == extension and child.is_file():
                shards.append(path / child.name)
    return shards


def _expand_braces(text: str) -> Iterator[str]:
    """Expand `a{0..2}` to `a0`, `a1`, `a2`, and `{a,b}c` to `ac`, `bc`, as a shell does."""
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
    """Return the file names of shards, or, if two are equal, their paths with `_` for `/`.

    The paths begin below the folder that all shards share.

    Raises:
        DataError: a shard does not exist.
    """
    for shard in shards:
        if not is_file(shard):
            text, hint = f"no such file: {show(shard)}", "Check the numbers in braces"
            raise DataError(text, hint, code="data_missing", path=shard)
    if len({shard.name for shard in shards}) == len(shards):
        return {shard: shard.name for shard in shards}
    shared = os.path.commonpath([shard.absolute().parent for shard in shards])
    return {shard: os.path.relpath(shard, shared).replace(os.sep, "_") for shard in shards}
