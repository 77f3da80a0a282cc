"""Sources of samples, one per module: each has `SOURCE`, a subclass of `Source`."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from diffuse_cli.core import Modules
from diffuse_cli.data.sources.entries import HINT, extension_of, is_file, is_folder
from diffuse_cli.data.sources.entries import Entry as Entry
from diffuse_cli.data.sources.entries import Source as Source
from diffuse_cli.data.sources.folder import SingleFile
from diffuse_cli.media import advice_for, media_by_extension
from diffuse_cli.media.file_errors import stat_of
from diffuse_cli.system import DataError, Progress, Work, file_types, run_reader, show
from diffuse_cli.system.hub_models import is_name

SOURCES: Mapping[str, type[Source]] = Modules(
    "sources", __name__, __path__, helpers=("entries",), value="SOURCE"
)
"""Source classes by name. `find_source_kind` tries `folder` last, the others in the order of their
names."""


def find_source_kind(path: Path, *, single: bool = False) -> str:
    """Return the name in `SOURCES` of the source at a path, empty if it is not a source.

    With `single`, a file that is one sample is not a source.
    """
    if is_folder(path) and run_reader.find_run(path):
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
    return bool(find_source_kind(path, single=single) or advice_for(path.name))


def is_sample(path: Path) -> bool:
    """Whether a path is a file that a medium can read, by its extension."""
    return extension_of(path.name) in media_by_extension() and is_file(path)


def open_source(path: Path, *, single: bool = False) -> Source:
    """Open the source at `path`, or with `single` the file of a sample.

    Raises:
        DataError: the path is not a source.
    """
    if kind := find_source_kind(path, single=single):
        return SOURCES[kind].open(path)
    if is_name(path):
        name = str(path).removeprefix("hf:").lstrip("/")
        raise DataError(f"not a data set: hf://{show(name)}", "Pass hf://datasets/ORG/NAME")
    mode = stat_of(path, "file or folder", HINT).st_mode
    todo = advice_for(path.name)
    hint = todo or HINT
    if run_reader.find_run(path):
        raise DataError(f"{show(path)} is the run directory of a model, not images", hint)
    if single and is_sample(path):
        return SingleFile(path)
    if stat.S_ISREG(mode) and (file_kind := file_types.recognize_path(path)):
        message, advice = file_types.kind_error(file_kind, path, "images")
        raise DataError(message, todo or advice or hint)
    if extension_of(path.name) in media_by_extension():
        hint = "Pass the folder that holds the images as DATA"
    raise DataError(f"neither a folder nor a file of images: {show(path)}", hint)


def file_hashes(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of named files of a source, or of a single file."""
    requested_names = set(names)
    with contextlib.closing(open_source(path, single=True)) as source:
        return {
            entry.name: hashlib.sha256(source.read(entry)).hexdigest()
            for entry in source.entries()
            if entry.name in requested_names
        }
