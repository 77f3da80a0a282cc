"""A tar file, or shards as in WebDataset, read without unpacking to disk.

Headers are read once. Then any thread or process can read a member by its offset. In WebDataset,
files that share a name up to its first dot are one sample: `.cls` holds its class, `.json` its
metadata columns.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from diffuse_cli.data.sources import base
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import DataError, file_types, raise_if_full, shorten, show
from diffuse_cli.system.descriptors import open_to_read, read_at

EXTENSION = ".tar"
CLASS, COLUMNS = ".cls", ".json"
LABEL = "label"
"""The column of a `.json` that is the class if there is no `.cls`."""

LARGEST_NOTE = 2**20
"""Largest size of a `.cls` or `.json`, in bytes."""
MOST_OPEN = 64
"""Number of shards that stay open. Further shards are opened for each member."""

LONGEST = 2**16
"""Largest header of a long name, in bytes."""


class TarMembers(NamedTuple):
    """Members of the shards.

    Attributes:
        media: the files that a medium reads, by sample name.
        others: all other files, and damaged shards.
        classes, columns: the files with the class and the metadata of samples, by sample name.
        prefixed: whether names begin with the name of their shard.
    """

    media: dict[str, list[base.Entry]]
    other_entries: list[base.Entry]
    classes: dict[str, base.Entry]
    columns: dict[str, base.Entry]
    prefixed: bool


class Tar(base.Source):
    """Members of shards.

    Their names are their paths, as if all shards were unpacked into one folder. If two shards have
    a member of the same name, all names begin with the name of their shard.
    """

    @staticmethod
    def recognizes(path: Path) -> bool:
        if base.is_file(path):
            kind = file_types.recognize_path(path)
            unknown = not kind and base.extension_of(path.name) == EXTENSION
            return kind == file_types.TAR or unknown
        return base.shards_at(path, EXTENSION) is not None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        short = base.short_names(base.shards_at(path, EXTENSION) or [path])
        self._shards = {shard.absolute(): name for shard, name in short.items()}
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def entries(self) -> Iterator[base.Entry]:
        yield from self._index.other_entries
        samples = [e for stem in self._index.media for e in self._samples(stem)]
        labels = {stem: self._label(stem) for stem in self._index.media if self._has_note(stem)}
        if any(labels.values()):
            sample_labels = [labels.get(_split_name(e.name)[0], "") for e in samples]
        else:
            sample_labels = self._folders(samples)
        for entry, label in zip(samples, sample_labels, strict=True):
            yield entry._replace(label=label)

    def read(self, entry: base.Entry) -> bytes:
        start, size, shard = entry.key.split(":", 2)
        with self._file(shard) as file:
            return read_range(file, int(start), int(size))

    def read_rows(self, selection: Collection[str] | None) -> Iterator[base.MetadataRow]:
        for stem, entry in self._index.columns.items():
            table, data = show(entry.name), self.read_table(entry, LARGEST_NOTE)
            path = self.path / entry.name
            try:
                values = json.loads(data)
            except (ValueError, RecursionError) as error:
                text = f"{table}: {shorten(getattr(error, 'msg', 'not JSON'))}"
                raise DataError(text, code="metadata_unreadable", path=path) from None
            if not isinstance(values, dict):
                text = f"{table}: not an object in braces"
                raise DataError(text, code="metadata_unreadable", path=path)
            for sample in self._samples(stem):
                yield base.MetadataRow(table, 1, sample.name, values)

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    @contextlib.contextmanager
    def _file(self, shard: str) -> Iterator[int]:
        """Open a shard and yield its descriptor. The first `MOST_OPEN` shards stay open."""
        with self._lock:
            descriptor = self._open.get(shard)
            if descriptor is None and len(self._open) < MOST_OPEN:
                descriptor = self._open[shard] = open_to_read(shard)
        if descriptor is not None:
            yield descriptor
            return
        with io.FileIO(open_to_read(shard)) as file:
            yield file.fileno()

    @cached_property
    def _index(self) -> TarMembers:
        """The members of all shards, by their role."""
        members: dict[Path, dict[str, base.Entry]] = {shard: {} for shard in self._shards}
        other_entries: list[base.Entry] = []
        for shard, short in self._shards.items():
            if fault := list_members(shard, members[shard]):
                other_entries.append(base.Entry(f"{short}/", 0, str(shard), fault, label=""))
        distinct = {name for names in members.values() for name in names}
        several = len(distinct) < sum(map(len, members.values()))
        readers = media_by_extension()
        index = TarMembers({}, other_entries, {}, {}, several)
        notes = {CLASS: index.classes, COLUMNS: index.columns}
        other_members: list[tuple[str, str, base.Entry]] = []
        for shard, shard_members in members.items():
            prefix = self._shards[shard].removesuffix(EXTENSION) + "/" if several else ""
            for name, member in shard_members.items():
                entry = member._replace(name=prefix + name)
                stem, extension = _split_name(entry.name)
                if base.extension_of(name) in readers:
                    index.media.setdefault(stem, []).append(entry)
                else:
                    other_members.append((stem, extension, entry))
        for stem, extension, entry in other_members:
            if stem in index.media and extension in notes:
                notes[extension][stem] = entry
            else:
                other_entries.append(entry)
        self.tables = ("*.json",) if index.columns else ()
        return index

    def _has_note(self, stem: str) -> bool:
        return stem in self._index.classes or stem in self._index.columns

    def _samples(self, stem: str) -> list[base.Entry]:
        """Return the samples of one name: only `a.jpg` of `a.cls`, `a.jpg` and `a.mask.png`."""
        samples = self._index.media[stem]
        bare = [e for e in samples if _split_name(e.name)[1].count(".") == 1]
        return bare if bare and self._has_note(stem) else samples

    def _folders(self, samples: list[base.Entry]) -> list[str]:
        """Return the folder of each sample, below the folder that all samples of a medium share."""
        readers, inside = media_by_extension(), dict[str, list[str]]()
        media = [readers[base.extension_of(entry.name)] for entry in samples]
        for medium, entry in zip(media, samples, strict=True):
            name = entry.name
            if self._index.prefixed:  # the shard's name is not a folder
                name = name.partition("/")[2]
            inside.setdefault(medium, []).append(name)
        folders = {medium: iter(base.folder_classes(names)) for medium, names in inside.items()}
        return [next(folders[medium]) for medium in media]

    def _label(self, stem: str) -> str:
        """Return the class of a sample by its `.cls` or `.json`, empty if they have none."""
        entry = self._index.classes.get(stem)
        note = entry or self._index.columns[stem]
        if note.fault or note.size > LARGEST_NOTE:
            return ""
        try:
            data = self.read(note)
            if entry:
                return data.decode("utf-8", "replace").strip()
            value = json.loads(data)[LABEL]
        except (reasons.Unusable, OSError, ValueError, LookupError, TypeError, RecursionError):
            return ""
        named = isinstance(value, str | int) and not isinstance(value, bool)
        return str(value) if named else ""


def _split_name(name: str) -> tuple[str, str]:
    """Split `a/b.mask.PNG` into `a/b` and `.mask.png`."""
    folder, slash, file_name = name.rpartition("/")
    stem, dot, extension = file_name.partition(".")
    return folder + slash + stem, dot + extension.lower()


class TarFileReader(io.FileIO):
    """Tar file for `tarfile`, which by itself reads a header of any length that the file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, if a header can be that long."""
        if size is None or not 0 <= size <= LONGEST:
            raise reasons.Unusable(reasons.CORRUPT)
        return super().read(size)


def list_members(shard: Path, members: dict[str, base.Entry]) -> str:
    """Add the members of a shard by name, and return its fault or an empty text.

    The last member of a name counts. Members before a damaged part are found.
    """
    try:
        with TarFileReader(open_to_read(shard)) as file:
            end = os.fstat(file.fileno()).st_size
            if not end:
                return reasons.EMPTY
            archive = tarfile.TarFile(fileobj=file, encoding="utf-8")
            while info := archive.next():
                # Otherwise tarfile would keep the headers of all members.
                archive.members.clear()  # type: ignore[attr-defined]
                if info.size < 0 or archive.offset > end:
                    return reasons.CORRUPT
                if not info.isdir() and (name := base.plain_name(info.name)):
                    key = f"{info.offset_data}:{info.size}:{shard}"
                    members[name] = base.Entry(name, info.size, key, _fault(info))
            # tarfile stops at a damaged header as at the blocks of zeros after the last member.
            last = read_at(file.fileno(), tarfile.BLOCKSIZE, archive.offset)
            return reasons.CORRUPT if any(last) else ""
    except FileNotFoundError:
        return reasons.VANISHED
    except OSError:
        return reasons.UNREADABLE
    except Exception as error:  # headers are bytes of any kind
        raise_if_full(error)
        return reasons.CORRUPT


def _fault(info: tarfile.TarInfo) -> str:
    if not info.isreg() or info.issparse():
        return reasons.IRREGULAR
    return reasons.TOO_LARGE if info.size > reasons.LARGEST_FILE else ""


def read_range(file: int, start: int, size: int) -> bytes:
    """Return `size` bytes of an open file.

    Raises:
        reasons.Unusable: the file ends earlier.
    """
    data = b""
    while len(data) < size:
        more = read_at(file, size - len(data), start + len(data))
        if not more:
            raise reasons.Unusable(reasons.CORRUPT)
        data += more
    return data


SOURCE = Tar
