"""Sources of samples: a folder or a zip file, listed in a stable order and read by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from diffuse_cli import foreign, runs
from diffuse_cli import unusable as reasons
from diffuse_cli.errors import DataError
from diffuse_cli.files import show
from diffuse_cli.media import advice, by_extension
from diffuse_cli.unusable import LARGEST_FILE, Unusable

TABLES = ("metadata.csv", "metadata.jsonl")
"""Names of tables that say something of the samples beside them."""

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "diffuse.samples"

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""With other methods zipfile unpacks a whole member, however little is asked for."""
_AT_ONCE = 2**20


class Entry(NamedTuple):
    """A file of a source: its relative path with `/`, its size in bytes, its name in the source,
    and the reason why it must not be opened, if any."""

    name: str
    size: int
    key: str
    fault: str = ""


@dataclass(frozen=True)
class Listing:
    """The files that a medium reads, in the byte order of their names. `others` counts the rest,
    and `unread`, by extension, those of them that there is advice for; `tables` are the names of
    those in `TABLES`, which are not counted."""

    medium: str
    candidates: tuple[Entry, ...]
    others: int
    unread: Mapping[str, int]
    tables: tuple[str, ...] = ()


class Folder:
    """All files below a folder. Links are followed; each folder is visited once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> Iterator[Entry]:
        seen: set[tuple[int, int]] = set()
        real: list[tuple[str, str]] = [("", str(self.path))]
        # Links come last: a folder is listed by its real name if it has one here.
        links: list[tuple[str, str]] = []
        while real or links:
            name, path = real.pop() if real else links.pop(0)
            try:
                with os.scandir(path) as found:
                    info = Path(path).stat()
                    if (info.st_dev, info.st_ino) in seen:
                        continue
                    seen.add((info.st_dev, info.st_ino))
                    children = sorted(found, key=lambda e: os.fsencode(e.name))
            except OSError:
                yield Entry(f"{name or '.'}/", 0, path, reasons.UNREADABLE)
                continue
            for child in children:
                relative = f"{name}/{child.name}" if name else child.name
                if _is_folder(child):
                    if not _is_ignored_folder(child.name):
                        (links if child.is_symlink() else real).append((relative, child.path))
                elif not child.name.startswith("."):
                    yield _file_entry(relative, child)

    def read(self, entry: Entry) -> bytes:
        # It may have become a FIFO since it was listed.
        descriptor = os.open(entry.key, os.O_RDONLY | os.O_NONBLOCK)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise Unusable(reasons.IRREGULAR)
            if info.st_size > LARGEST_FILE:
                raise Unusable(reasons.TOO_LARGE)
            data = os.read(descriptor, info.st_size)
            while len(data) < info.st_size and (more := os.read(descriptor, _AT_ONCE)):
                data += more
            return data
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Nothing to close."""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _file_entry(name: str, child: os.DirEntry[str]) -> Entry:
    try:
        info = child.stat()
    except FileNotFoundError:
        return Entry(name, 0, child.path, reasons.VANISHED)
    except OSError:
        return Entry(name, 0, child.path, reasons.UNREADABLE)
    fault = "" if stat.S_ISREG(info.st_mode) else reasons.IRREGULAR
    return Entry(name, info.st_size, child.path, fault)


def _is_ignored_folder(name: str) -> bool:
    return name.startswith(".") or name.endswith(".run") or name == "__MACOSX"


class OneFile(Folder):
    """A single file."""

    def entries(self) -> Iterator[Entry]:
        yield Entry(self.path.name, self.path.stat().st_size, str(self.path))


class Zip:
    """The members of a zip file; nothing is unpacked to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = zipfile.ZipFile(path)

    def entries(self) -> Iterator[Entry]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._file.infolist():
            parts = [part for part in info.filename.split("/") if part not in ("", ".", "..")]
            ignored = any(_is_ignored_folder(part) for part in parts[:-1])
            if parts and not info.is_dir() and not ignored and not parts[-1].startswith("."):
                members["/".join(parts)] = info  # the last of a name, like unzip
        for name, info in members.items():
            yield Entry(name, info.file_size, info.filename, _member_fault(info))

    def read(self, entry: Entry) -> bytes:
        try:
            with self._file.open(entry.key) as file:
                # At once, zipfile unpacks more than the member's declared size.
                return b"".join(iter(partial(file.read, _AT_ONCE), b""))
        except RuntimeError:
            raise Unusable(reasons.UNREADABLE) from None
        except OSError as error:
            raise Unusable(reasons.UNREADABLE if error.errno else reasons.CORRUPT) from None
        except MemoryError:
            raise
        except Exception:
            raise Unusable(reasons.CORRUPT) from None

    def close(self) -> None:
        self._file.close()


Source = Folder | Zip
"""The files of a source, without hidden ones, and their contents. `read` is thread-safe."""


def _member_fault(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 0x1:
        return reasons.ENCRYPTED
    if info.file_size > LARGEST_FILE:
        return reasons.TOO_LARGE
    if info.compress_type not in _METHODS:
        return reasons.COMPRESSION
    return reasons.IRREGULAR if kind not in (0, stat.S_IFREG) else ""


def is_images(path: Path) -> bool:
    """Whether `path` is a folder or a zip file of samples, not a model file or a run."""
    if not path.is_file():
        return path.is_dir() and runs.run_at(path) is None
    kind = foreign.kind_at(path)
    if kind != foreign.TORCH:
        return kind == foreign.ZIP
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged, but it begins as a model
        return False
    readers = by_extension()
    return any(_extension(name.rpartition("/")[2]) in readers for name in names)


def mode_of(path: Path, hint: str) -> int:
    """The `st_mode` of a path.

    Raises:
        DataError: there is nothing, or it cannot be read.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {show(path)}", hint) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {show(path)}: {error}", hint) from None


def open_source(path: Path, *, single: bool = False) -> Source:
    """The folder or zip file at `path`, or, if `single`, the file of a sample.

    Raises:
        DataError: it is none of these.
    """
    hint = "DATA is a folder or a .zip file of images"
    mode = mode_of(path, hint)
    if runs.run_at(path):
        raise DataError(f"{show(path)} is the run directory of a model, not images", hint)
    if stat.S_ISDIR(mode):
        return Folder(path)
    if is_images(path):
        try:
            return Zip(path)
        except Exception as error:
            raise DataError(f"cannot read the zip file {show(path)}: {error}", hint) from error
    named = path.suffix.lower() in by_extension()
    if single and named and stat.S_ISREG(mode):
        return OneFile(path)
    if stat.S_ISREG(mode) and (kind := foreign.kind_at(path)):
        message, advice = foreign.described(kind, path, "images")
        raise DataError(message, advice or hint)
    if named:
        hint = "DATA is the folder that holds the images"
    raise DataError(f"neither a folder nor a zip file: {show(path)}", hint)


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
        elif reader := readers.get(extension := _extension(base)):
            found.setdefault(reader, []).append(entry)
        elif base in TABLES:
            tables.append(entry.name)
        else:
            others += 1
            if extension in known:
                unread[extension] += 1
            if base == MANIFEST and not entry.fault and (names := _read_manifest(source, entry)):
                samples[folder] = names
    chosen = medium or max(found, key=lambda name: len(found[name]))
    kept = [e for e in found.get(chosen, []) if _is_listed(e.name, samples)]
    others += sum(len(entries) for name, entries in found.items() if name != chosen)
    ordered = sorted([*kept, *unlisted], key=lambda e: in_bytes(e.name))
    return Listing(chosen, tuple(ordered), others, unread, tuple(sorted(tables, key=in_bytes)))


def _extension(base: str) -> str:
    """`.png` of `a.PNG`; faster than `Path.suffix`, for a million names."""
    stem, dot, extension = base.rpartition(".")
    return dot + extension.lower() if stem else ""


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


def in_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def classes_of(names: list[str], candidates: list[str]) -> tuple[list[int], tuple[str, ...]]:
    """Labels of `names`, and the class names in byte order.

    A class is a folder directly below the common folder of all `candidates`; files directly in the
    common folder have label -1.
    """
    folders = {name.rpartition("/")[0] for name in candidates}
    levels = zip(*(folder.split("/") if folder else () for folder in folders), strict=False)
    depth = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    parts = [name.split("/")[depth:] for name in names]
    class_names = sorted({p[0] for p in parts if len(p) > 1}, key=in_bytes)
    index = {name: k for k, name in enumerate(class_names)}
    return [index[p[0]] if len(p) > 1 else -1 for p in parts], tuple(class_names)


def file_hashes(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files of a source, a single file or not, by name."""
    wanted = set(names)
    with contextlib.closing(open_source(path, single=True)) as source:
        return {
            entry.name: hashlib.sha256(source.read(entry)).hexdigest()
            for entry in source.entries()
            if entry.name in wanted
        }
