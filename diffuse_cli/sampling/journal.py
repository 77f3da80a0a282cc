"""Record of the written samples of a sampling run, so that a stopped run can be resumed.

A job writes samples in parts, which are batches by index. A sample is always generated with the
same others, however often the job stops. Until the job is complete, its folder has a hidden folder,
`.sampling`, with manifests: one of the settings, and one for each part with the SHA-256 of its
files, written before them. So a file is the run's own if a manifest names it, and it is whole if
it has its hash. Other files are neither counted nor overwritten. At the end, one manifest of all
files replaces the hidden folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuse_cli.data.samples import format_member
from diffuse_cli.data.sources import MANIFEST, MANIFEST_FORMAT
from diffuse_cli.data.sources.base import extension_of
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import OutputError, UsageError, files, outputs

GRID, GIF = "grid.png", "denoising.gif"

NETCDF = ".nc"
PACKED = (".zip", ".npz", NETCDF)
"""Extensions of the files that `sample` packs samples into."""

KEY = "settings"
"""Entry of the manifest with the hash of the settings."""

WORK = ".sampling"
"""Name of the record's folder, which lies next to the samples until the run is complete."""

PLAIN = r"[^/.\n][^/\n]*"
FIGURE = re.compile(rf"grid\.png|denoising\.gif|({PLAIN}/)*{PLAIN}-(mean|std)\.npy")
"""Patterns of a name that stays in its folder, and of the files that are made of all samples."""

WRITTEN = re.compile(
    rf"\d{{5,}}\.\w+|({PLAIN}/)*{PLAIN}-\d\d+\.\w+|{FIGURE.pattern}|manifest\.json|"
    rf"{re.escape(WORK)}/[\w.-]+\.npy"
)
"""Pattern of the names of files that a run writes."""

LOCK = ".lock"

TAKEN = "Choose another -o, or pass --overwrite"


def format_file_name(index: int, suffix: str) -> str:
    """Return the name of a sample's file."""
    return f"{index:05d}{suffix}"


def read_manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the manifests of the samples in a folder, of which the first has the settings."""
    for path in (folder / MANIFEST, folder / WORK / MANIFEST, *(folder / WORK).glob("*.json")):
        manifest = files.read_json(path)
        is_valid = manifest.get("format") == MANIFEST_FORMAT
        if is_valid and isinstance(manifest.get("files"), dict):
            yield manifest


def read_earlier(folder: Path) -> dict[str, Any]:
    """Return the manifest with the settings of a folder's samples, empty if there is none."""
    return next(read_manifests(folder), {})


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder of samples, and remove it again if it is new and stays empty."""
    return outputs.hold_lock(folder / LOCK, owned=f"{WRITTEN.pattern}|{re.escape(WORK)}")


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse, before computing, a folder that cannot be written or has samples without settings.

    Raises:
        OutputError
        UsageError: it is named like a file of a sample.
    """
    if extension_of(folder.name) in {*media_by_extension(), *PACKED} and not folder.is_dir():
        text = f"-o {files.show(folder)} looks like a file, but samples are written into a folder"
        hint = "Leave out the extension"
        raise UsageError(text, hint, code="output_unsuited", option="-o", path=folder)
    files.check_writable(folder / MANIFEST)
    if overwrite or not folder.is_dir() or KEY in read_earlier(folder):
        return
    with files.report_errors(folder):
        names = [path.name for path in folder.iterdir()]
    media_names = [name for name in names if extension_of(name) in media_by_extension()]
    if MANIFEST in names or any(map(WRITTEN.fullmatch, media_names)):
        text = f"{files.show(folder)} already holds samples"
        raise OutputError(text, TAKEN, code="output_exists", path=folder)
    if media_names:
        text = f"{files.show(folder)} holds {files.show(media_names[0])}, which is not a sample"
        hint = "Choose another -o: of a folder that has samples, train reads nothing else"
        raise OutputError(text, hint, code="output_foreign", path=folder)


def check_output_apart(folder: Path, *paths: str) -> None:
    """Refuse an output folder that contains an input, which would be replaced, or is part of it.

    Raises:
        UsageError
    """
    for path in map(Path, paths):
        source, place, relation = path.resolve(), folder.resolve(), ""
        if place in ((source,) if path.is_dir() else (source, source.parent)):
            relation = "holds"
        elif path.is_dir() and source in place.parents:  # a repetition would read the results
            relation = "is in"
        if relation:
            text = f"-o {files.show(folder)} {relation} the input {files.show(path)}"
            hint = "Choose another -o"
            raise UsageError(text, hint, code="output_is_input", option="-o", path=path)


@dataclass
class SamplingRecord:
    """Record of a sampling run. Only the first process begins, collects and ends it.

    Attributes:
        folder: the folder of the samples.
        described: settings that decide the samples' bytes, which the manifest lists.
        hidden: settings that decide them too, which the manifest has in another form.
        suffix: the suffix of the samples' files.
        stems: the names of N inputs, of which sample k has the one of k modulo N and the number
            k // N. By default, a name has only the number.
        hashes: the SHA-256 of each file that exists and matches a manifest, by name.
        is_new: whether the run began without samples of an earlier one.
    """

    folder: Path
    described: Mapping[str, Any]
    hidden: Mapping[str, Any]
    suffix: str
    stems: Sequence[str] = ("",)
    hashes: dict[str, str] = field(default_factory=dict)
    is_new: bool = False

    def __post_init__(self) -> None:
        settings = {**self.described, **self.hidden}
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.work = self.folder / WORK

    @property
    def indices(self) -> list[int]:
        """Indices of the samples in `hashes`."""
        places = {stem: k for k, stem in enumerate(self.stems)}
        parts = (name.removesuffix(self.suffix).rpartition("-") for name in self.hashes)
        numbered = ((places[stem], n) for stem, _, n in parts if stem in places and n.isdecimal())
        return sorted(int(number) * len(places) + place for place, number in numbered)

    def name(self, index: int) -> str:
        """Return the name of a sample's file in the folder."""
        number, place = divmod(index, len(self.stems))
        if stem := self.stems[place]:
            return format_member(stem, number) + self.suffix
        return format_file_name(number, self.suffix)

    def path(self, index: int) -> Path:
        """Return the file of a sample."""
        return self.folder / self.name(index)

    def begin(
        self, parts: Mapping[range, Sequence[str]], figures: Collection[str], *, overwrite: bool
    ) -> list[range] | None:
        """Start a run, or resume the one in the folder.

        Args:
            parts: the names of the files of each part.
            figures: names of the figures.

        Returns:
            The parts to generate, None if all samples and figures are complete.

        Raises:
            OutputError: the folder has samples with other settings, or another file with the name
                of a sample, and `overwrite` is false.
            BusyError: a process of an earlier run still writes there.
        """
        for path in sorted(self.work.glob("*.lock")):
            with outputs.hold_lock(path):
                pass
        if overwrite:
            self._clear()
        self._check_same()
        recorded, unfinished = self.collect(), (self.work / MANIFEST).exists()
        self.is_new = not recorded
        names = {name for part in parts.values() for name in part if not name.startswith(WORK)}
        if not unfinished and {*names, *figures} <= {*self.hashes}:
            return None
        remaining = [part for part, names in parts.items() if not {*names} <= {*self.hashes}]
        for name in (*figures, *(name for part in remaining for name in parts[part])):
            if not overwrite and name not in recorded and (self.folder / name).exists():
                path = self.folder / name
                text = f"{files.show(path)} is not a sample of this run"
                raise OutputError(text, TAKEN, code="output_exists", path=path)
        for name in filter(FIGURE.fullmatch, recorded):
            if name in figures or name != GIF:  # an animation shows the first images, as before
                files.remove(self.folder / name)
        return remaining

    def _clear(self) -> None:
        """Remove only the files that an earlier run recorded."""
        # The manifest is the last, because a repetition reads from it what is left.
        for name in (*self._read_recorded(), MANIFEST) if read_earlier(self.folder) else ():
            files.remove(self.folder / name)
        files.remove(self.work)

    def _check_same(self) -> None:
        earlier = read_earlier(self.folder)
        if not earlier or earlier.get(KEY) == self.key:
            return
        described = json.loads(json.dumps(self.described))
        names = (n for n, value in described.items() if n in earlier and earlier[n] != value)
        name = next(names, [*described, *self.hidden][-1])
        name = "conditions" if name.startswith("told") else name.replace("_", " ")
        if earlier.get("named") != described.get("named"):
            name = "--members"
        text = f"{files.show(self.folder)} already holds samples with other settings: {name}"
        raise OutputError(text, TAKEN, code="output_exists", path=self.folder)

    def _read_recorded(self) -> dict[str, list[str]]:
        """Return the recorded hashes of each file, several if it was generated again."""
        recorded: dict[str, list[str]] = {}
        for manifest in read_manifests(self.folder):
            for name in filter(WRITTEN.fullmatch, manifest["files"]):
                recorded.setdefault(name, []).append(manifest["files"][name])
        return recorded

    def collect(self) -> Collection[str]:
        """Hash the files of all processes, and return the names of those that are recorded."""
        recorded, self.hashes = self._read_recorded(), {}
        for name, hashes in recorded.items():
            path = self.folder / name
            with files.report_errors(path):
                if path.is_file() and (digest := files.sha256(path)) in hashes:
                    self.hashes[name] = digest
        return recorded

    def keep(self, indices: Sequence[int]) -> None:
        """Leave other samples than these out of the manifest."""
        for index in {*self.indices} - {*indices}:
            del self.hashes[self.name(index)]

    def hold_lock(self, rank: int) -> AbstractContextManager[None]:
        """Hold the lock of a process."""
        return outputs.hold_lock(self.work / f"{rank}.lock")

    def add(self, name: str, contents: Mapping[str, bytes]) -> None:
        """Record files, and then write them. Each process does so for its parts.

        Args:
            name: the name of the record.
            contents: the bytes of each file by its name.
        """
        if not (self.work / MANIFEST).exists():
            self._write_manifest(self.work / MANIFEST, {"files": {}})
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        record = {"format": MANIFEST_FORMAT, KEY: self.key, "files": hashes}
        files.write_json(self.work / f"{name}.json", record)
        for file_name, data in contents.items():
            files.write_bytes(self.folder / file_name, data)
        self.hashes.update(hashes)

    def end(self, entries: Mapping[str, Any]) -> None:
        """Replace the record by a manifest of all files, with further entries."""
        images = [self.name(i) for i in self.indices]
        listed = {name: self.hashes[name] for name in self.hashes if not name.startswith(WORK)}
        manifest = {**entries, "images": images, "files": listed}
        self._write_manifest(self.folder / MANIFEST, manifest)
        files.remove(self.work)

    def _write_manifest(self, path: Path, entries: Mapping[str, Any]) -> None:
        files.write_json(path, {**self.described, KEY: self.key, **entries})

    def abandon(self) -> None:
        """Remove the files of a new run that stopped before its first part was complete."""
        if not self.is_new or len([*self.work.glob("*.json")]) > 2:
            return
        if len(self.collect()) > len(self.hashes) or not self.hashes:
            self._clear()
