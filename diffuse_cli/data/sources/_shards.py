"""Shards: the files of a source that is split, by a folder or a pattern."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product
from pathlib import Path

from diffuse_cli.data.sources.entries import extension_of, is_file, is_folder, is_ignored_folder
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import DataError, show

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
            raise DataError(f"no such file: {show(shard)}", "Check the numbers in braces")
    if len({shard.name for shard in shards}) == len(shards):
        return {shard: shard.name for shard in shards}
    shared = os.path.commonpath([shard.absolute().parent for shard in shards])
    return {shard: os.path.relpath(shard, shared).replace(os.sep, "_") for shard in shards}
