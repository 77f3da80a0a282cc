"""Sources of samples, one per module with its `SOURCE`: find, open and list them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from diffuse_cli import media
from diffuse_cli.core import Modules
from diffuse_cli.data.sources import base
from diffuse_cli.data.sources.base import MANIFEST as MANIFEST
from diffuse_cli.data.sources.base import MANIFEST_FORMAT as MANIFEST_FORMAT
from diffuse_cli.data.sources.base import Entry as Entry
from diffuse_cli.data.sources.base import Source as Source
from diffuse_cli.data.sources.folder import SingleFile
from diffuse_cli.media import Unusable
from diffuse_cli.media.file_errors import LARGEST_FILE, stat_of
from diffuse_cli.system import DataError, Progress, Work, file_types, run_reader, show
from diffuse_cli.system.hub_models import is_name

LOOKED_AT = 8
"""Number of files that decide whether another medium claims the files of an extension."""

EXAMPLES_HINT = "The example images are in a clone of diffuse. Run this there, or pass your images"

SOURCES: Mapping[str, type[Source]] = Modules(
    "sources", __name__, __path__, helpers=("base",), value="SOURCE"
)
"""Source classes by name. `find_source_kind` tries `folder` last, the others in the order of their
names."""


def find_source_kind(path: Path, *, single: bool = False) -> str:
    """Return the name in `SOURCES` of the source at a path, empty if it is not a source.

    With `single`, a file that is one sample is not a source.
    """
    if base.is_folder(path) and run_reader.find_run(path):
        return ""
    sources = sorted(SOURCES.items(), key=lambda item: item[0] == "folder")
    kind = next((name for name, source in sources if source.recognizes(path)), "")
    return "" if single and kind and SOURCES[kind].is_sample else kind


def fetch_source(path: Path) -> Work[None]:
    """Download a remote source with progress. `open_source` does the same silently.

    Raises:
        DataError: the source cannot be downloaded.
    """
    kind = find_source_kind(path)
    for num_fetched, total in SOURCES[kind].fetch(path) if kind else ():
        yield Progress("downloading files", num_fetched, total)


def is_images(path: Path, *, single: bool = False) -> bool:
    """Whether `path` is a source of samples, not a model file or a run.

    Data of other programs counts, because `open_source` refuses it with a hint. With `single`, a
    file that is one sample is not a source.
    """
    return bool(find_source_kind(path, single=single) or media.advice_for(path.name))


def is_sample(path: Path) -> bool:
    """Whether a path is a file that a medium can read, by its extension."""
    return base.extension_of(path.name) in media.media_by_extension() and base.is_file(path)


def open_source(path: Path, *, single: bool = False) -> Source:
    """Open the source at `path`, or with `single` the file of a sample.

    Raises:
        DataError: the path is not a source.
    """
    if kind := find_source_kind(path, single=single):
        return SOURCES[kind].open(path)
    if is_name(path):
        name = str(path).removeprefix("hf:").lstrip("/")
        text, hint = f"not a data set: hf://{show(name)}", "Pass hf://datasets/ORG/NAME"
        raise DataError(text, hint, code="invalid_value", path=f"hf://{name}")
    is_example = path.parts[:1] == ("examples",)
    mode = stat_of(path, "file or folder", EXAMPLES_HINT if is_example else base.HINT).st_mode
    todo = media.advice_for(path.name)
    hint = todo or base.HINT
    if run_reader.find_run(path):
        text = f"{show(path)} is the run directory of a model, not images"
        raise DataError(text, hint, code="data_unsupported", path=path)
    if single and is_sample(path):
        return SingleFile(path)
    if stat.S_ISREG(mode) and (file_kind := file_types.recognize_path(path)):
        message, kind_hint = file_types.kind_error(file_kind, path, "images")
        code = "data_unreadable" if file_kind == file_types.CUT_ZIP else "data_unsupported"
        raise DataError(message, todo or kind_hint or hint, code=code, path=path)
    if base.extension_of(path.name) in media.media_by_extension():
        hint = "Pass the folder that holds the images as DATA"
    text = f"neither a folder nor a file of images: {show(path)}"
    raise DataError(text, hint, code="data_unsupported", path=path)


def file_hashes(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of named files of a source, or of a single file."""
    requested_names = set(names)
    with contextlib.closing(open_source(path, single=True)) as source:
        return {
            entry.name: hashlib.sha256(source.read(entry)).hexdigest()
            for entry in source.entries()
            if entry.name in requested_names
        }


@dataclass(frozen=True)
class Listing:
    """Files of a source that a medium reads.

    Attributes:
        medium: a name in `MEDIA`.
        candidates: the files, in the byte order of their names.
        others: the number of other files, without tables.
        unread: the number of other files that `advice` covers, by extension.
        tables: the names of metadata tables, and of the source's own tables.
        origin, quantities: attributes of the source.
    """

    medium: str
    candidates: tuple[Entry, ...]
    others: int
    unread: Mapping[str, int]
    tables: tuple[str, ...] = ()
    origin: str = ""
    quantities: tuple[str, ...] = ()


def list_samples(source: Source, medium: str | None = None) -> Listing:
    """List the files of `source` that a medium reads, by default the medium of most files.

    In a folder that `diffuse sample` wrote, only the samples count, not the grid.
    """
    readers, hints = media.media_by_extension(), media.advice()
    by_medium: dict[str, list[Entry]] = {"image": []}
    unlisted: list[Entry] = []
    samples: dict[str, frozenset[str]] = {}
    num_others, unread, tables = 0, Counter[str](), list[str]()
    changed = source.path.stat().st_mtime_ns if base.is_file(source.path) else 0
    for entry in source.entries():
        if changed:
            entry = entry._replace(changed=changed)
        folder, _, file_name = entry.name.rpartition("/")
        if not file_name:  # a folder that cannot be listed
            unlisted.append(entry)
        elif reader := readers.get(extension := base.extension_of(file_name)):
            by_medium.setdefault(reader, []).append(entry)
        elif file_name in base.TABLES:
            tables.append(entry.name)
        else:
            num_others += 1
            if extension in hints:
                unread[extension] += 1
            if file_name == MANIFEST and (names := _read_manifest(source, entry)):
                samples[folder] = names
    for name, kind in media.MEDIA.items():
        claimed = [e for e in by_medium["image"] if base.extension_of(e.name) in kind.claimed]
        claims = [*map(kind.claims, read_subset(source, claimed, LOOKED_AT))]
        if claims and all(claims):
            claimed_set = set(claimed)
            by_medium["image"] = [e for e in by_medium["image"] if e not in claimed_set]
            by_medium.setdefault(name, []).extend(claimed)
    chosen = medium or max(by_medium, key=lambda name: len(by_medium[name]))
    sample_entries = [e for e in by_medium.get(chosen, []) if _is_listed(e.name, samples)]
    num_others += sum(len(entries) for name, entries in by_medium.items() if name != chosen)
    ordered = sorted([*sample_entries, *unlisted], key=lambda e: base.encode_name(e.name))
    listed = (*sorted(tables, key=base.encode_name), *source.tables)
    facts = listed, source.origin, source.quantities
    return Listing(chosen, tuple(ordered), num_others, unread, *facts)


def read_subset(source: Source, entries: Sequence[Entry], count: int) -> Iterator[bytes]:
    """Yield the bytes of `count` random entries, always the same ones, in order.

    Entries that are too large, or cannot be read, are left out.
    """
    chosen = Random(0).sample(range(len(entries)), min(count, len(entries)))
    for entry in (entries[row] for row in sorted(chosen)):
        with contextlib.suppress(Unusable, OSError):
            if not entry.fault and entry.size <= LARGEST_FILE:
                yield source.read(entry)


def _is_listed(name: str, samples: dict[str, frozenset[str]]) -> bool:
    folder, _, file_name = name.rpartition("/")
    return folder not in samples or file_name in samples[folder]


def _read_manifest(source: Source, entry: Entry) -> frozenset[str]:
    """Return the file names in a manifest of samples, or none for another file of that name."""
    if entry.fault:
        return frozenset()
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
        sample_classes = base.folder_classes(names, [e.name for e in candidates])
    class_names = sorted({name for name in sample_classes if name}, key=base.encode_name)
    index = {"": -1} | {name: k for k, name in enumerate(class_names)}
    return [index[name] for name in sample_classes], tuple(class_names)
