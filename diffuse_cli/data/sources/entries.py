"""What every source gives: entries, the bytes of each, and what it says of samples itself."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from diffuse_cli.media import by_extension
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import show

HINT = "DATA is a folder, or a .zip, .tar, .parquet or .npy file, of images"

AT_ONCE = 2**20


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


class Told(NamedTuple):
    """What a source says of one sample: of which table and line, and each value by its column."""

    table: str
    line: int
    name: str
    values: Mapping[str, Any]


class Source:
    """The samples at a path, without hidden ones, and their contents.

    A process that decodes opens the source again by `path`, and gets entries that another listed.

    Attributes:
        path: as `open` of its module takes it.
        origin: what can be typed for the same samples anywhere, for the model file; empty for what
            lies here.
        tables: names of tables that are part of the source, once `entries` has ended.
        portable: whether another process can open it.
    """

    origin: str = ""
    tables: tuple[str, ...] = ()
    portable: bool = True

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

    def told(self, wanted: Collection[str] | None) -> Iterator[Told]:
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


def check_shards(shards: Iterable[Path]) -> None:
    """Refuse a shard that was written out and is not there.

    Raises:
        DataError
    """
    for shard in shards:
        if not is_file(shard):
            raise DataError(f"no such file: {show(shard)}", "Check the numbers in braces")


def short_names(shards: Iterable[Path]) -> dict[Path, str]:
    """Shards by their file names; by their paths if these are not unique."""
    paths = list(shards)
    names = [path.name for path in paths]
    unique = len(set(names)) == len(names)
    return dict(zip(paths, names if unique else map(str, paths), strict=True))
