"""Data sets of Hugging Face's hub, `hf://datasets/ORG/NAME[@REVISION][/PATH]`, through its cache.

Downloaded files are opened by their kind: parquet or tar shards, a folder or a zip file.
Without a path, the training split is used. Needs huggingface_hub.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from diffuse_cli.data.sources import base
from diffuse_cli.data.sources.folder import Folder
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import DataError, files, hub

SHARDS, ZIP = (".parquet", ".tar"), ".zip"
"""Kinds of data files, the preferred kinds first."""
TRAIN = re.compile(r"(^|[-_./])train(ing)?($|[-_./0-9])")
DATA, DEFAULT = "data", "default"
"""The folder of shards that does not name a configuration, and the default configuration."""
ALIASES = {"~parquet": "refs/convert/parquet"}
"""The branch with the hub's parquet conversion."""

_FORM = re.compile(
    r"hf:/+datasets/(?P<name>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/(?P<path>.*))?"
)


class HubDataset(base.Source):
    """Data set of the hub, downloaded and then opened as a local source."""

    @staticmethod
    def recognizes(path: Path) -> bool:
        return path.parts[:2] == ("hf:", "datasets")

    @staticmethod
    def fetch(path: Path) -> Iterator[tuple[int, int]]:
        """Download missing files, and yield the number of files in the cache and of all.

        Raises:
            DataError: the data set does not exist, cannot be downloaded, or arrives damaged.
        """
        subset = _select_files(str(path))
        yield from subset.listing.download_missing(subset.files)

    @classmethod
    def open(cls, path: Path) -> base.Source:
        from diffuse_cli.data.sources import open_source

        for _ in cls.fetch(path):
            pass
        subset = _select_files(str(path))
        root, names = subset.listing.snapshot, [file.name for file in subset.files]
        if subset.folder is None:
            source = open_source(root / _shard_pattern(names))
        else:  # the cache may have other files there
            start = f"{subset.folder}/" if subset.folder else ""
            source = Folder(root / subset.folder, {n.removeprefix(start) for n in names})
        source.origin = subset.name
        return source


class HubSelection(NamedTuple):
    """Files of a data set at a commit.

    Attributes:
        listing: all files of the data set.
        files: the files to use.
        folder: the folder of the files, or None for shards.
        name: a name to pass for the same files again.
    """

    listing: hub.HubListing
    files: Sequence[hub.HubFile]
    folder: str | None
    name: str


def _shard_pattern(names: Sequence[str]) -> str:
    """Return the name of a file, or the pattern of several shards."""
    if len(names) == 1:
        return names[0]
    extension = base.extension_of(posixpath.basename(names[0]))
    return "{" + ",".join(name.removesuffix(extension) for name in names) + "}" + extension


@functools.lru_cache(maxsize=16)
def _select_files(text: str) -> HubSelection:
    """Return the files of a name. The answer stays the same while this process runs.

    Raises:
        DataError: the name matches no files.
        UsageError: the name leads out of a repository.
    """
    form = _FORM.fullmatch(text.replace(os.sep, "/"))
    if form is None:
        address = files.show(re.sub(r"^hf:/+", "hf://", text))
        message, hint = f"not a data set: {address}", "Pass hf://datasets/ORG/NAME"
        raise DataError(message, hint, code="invalid_value", path=address)
    hub.check_repository_path(text, *form.group("name", "revision", "path"))
    revision = unquote(form["revision"] or "main")
    listing = hub.list_repository(form["name"], ALIASES.get(revision, revision))
    path = (form["path"] or "").strip("/")
    chosen_files, folder = _choose_files(listing, path)
    ending = f"/{path}" if path else ""
    return HubSelection(listing, chosen_files, folder, f"{listing.title}@{listing.commit}{ending}")


def _choose_files(listing: hub.HubListing, path: str) -> tuple[list[hub.HubFile], str | None]:
    """Return the files at a path, in a folder or of a pattern, and their folder.

    The folder is None for shards.

    Raises:
        DataError: there are no files, or they are several data sets.
    """
    exact = [f for f in listing.files if f.name == path or fnmatch.fnmatchcase(f.name, path)]
    below = [f for f in listing.files if not path or f.name.startswith(f"{path}/")]
    matches = exact or [f for f in below if base.plain_name(f.name.removeprefix(path))]
    if not matches:
        hint = _example_hint(listing, listing.files) if listing.files else "The data set is empty"
        text = f"no files at {path} in {listing.title}" if path else f"no files in {listing.title}"
        code = "hub_missing" if path else "data_empty"
        raise DataError(text, hint, code=code, path=listing.title)
    for extension in SHARDS:
        if shards := [f for f in matches if base.extension_of(f.name) == extension]:
            return (shards if exact else _choose_shards(listing, shards)), None
    media = media_by_extension()
    samples = [f for f in matches if base.extension_of(posixpath.basename(f.name)) in media]
    zips = [f for f in matches if base.extension_of(f.name) == ZIP]
    if samples and exact and not zips:
        text = f"{path} names single files in {listing.title}"
        raise DataError(text, "Pass their folder", path=listing.title)
    if samples and not exact:
        training = [f for f in samples if TRAIN.search(posixpath.dirname(f.name))]
        samples = training or samples
        folder = posixpath.commonpath([posixpath.dirname(f.name) for f in samples])
        tables = [f for f in matches if posixpath.basename(f.name) in base.TABLES]
        within = f"{folder}/" if folder else ""
        return [*samples, *(f for f in tables if f.name.startswith(within))], folder
    zips = [f for f in zips if TRAIN.search(f.name)] or zips
    if len(zips) == 1:
        return zips, None
    if zips:
        text = f"{len(zips)} zip files in {listing.title}"
        raise DataError(text, _example_hint(listing, zips), path=listing.title)
    message = f"no parquet, tar, zip or image files in {listing.title}"
    hint = f"Try the hub's parquet conversion: {listing.title}@~parquet"
    raise DataError(message, hint, code="data_empty", path=listing.title)


def _choose_shards(listing: hub.HubListing, shards: list[hub.HubFile]) -> list[hub.HubFile]:
    """Return the shards of the training split, if there is one, and of one configuration."""
    shards = [f for f in shards if TRAIN.search(f.name)] or shards
    by_folder: dict[str, list[hub.HubFile]] = {}
    for file in shards:
        parts = posixpath.dirname(file.name).split("/")
        folders = [part for part in parts if part not in ("", DATA) and not TRAIN.search(part)]
        by_folder.setdefault("/".join(folders), []).append(file)
    if len(by_folder) == 1:
        return shards
    if DEFAULT in by_folder:
        return by_folder[DEFAULT]
    names = ", ".join(files.shorten(name, 40) for name in [*by_folder][:8])
    first = next(name for name in by_folder if name)
    text = f"{listing.title} has several configurations: {names}"
    hint = f"Pass the folder of one, for example {listing.title}/{first}"
    raise DataError(text, hint, path=listing.title)


def _example_hint(listing: hub.HubListing, matches: Sequence[hub.HubFile]) -> str:
    return f"Pass one, for example {listing.title}/{files.shorten(matches[0].name)}"


SOURCE = HubDataset
