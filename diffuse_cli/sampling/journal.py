"""Record of the written samples of a sampling run, so that a stopped run can be resumed.

A job writes images in parts, which are batches by index. An image is always generated with the same
others, however often the job stops. Until the job is complete, its folder has a hidden folder,
`.sampling`, with the settings and a log of each process. A log has a line for each part, with the
SHA-256 of its files, once they are on the disk. A file without a line, or with another hash, is
generated again. At the end the manifest replaces the hidden folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.data.sources.entries import MANIFEST, MANIFEST_FORMAT, extension_of
from diffuse_cli.media import media_by_extension
from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import OutputError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]


SETTINGS = "settings.json"
KEY = "settings"
"""Entry of the manifest with the hash of the settings."""

TAKEN = "Choose another -o, or pass --overwrite"


def split_parts(indices: range, size: int) -> list[range]:
    """Return the batches of some images, which end at multiples of `size` and at the last image."""
    first, last = indices.start // size, (indices.stop - 1) // size
    blocks = ((k * size, (k + 1) * size) for k in range(first, last + 1))
    return [range(max(start, indices.start), min(stop, indices.stop)) for start, stop in blocks]


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Return a hash of the settings that decide the bytes of images."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_earlier(folder: Path) -> dict[str, Any]:
    """Return the settings of the samples in a folder, empty if there are none."""
    return files.read_json(folder / WORK / SETTINGS).get(KEY) or read_manifest(folder)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse, before computing, a folder that cannot be written or has samples without settings.

    Raises:
        OutputError
    """
    files.check_writable(folder / MANIFEST)
    if overwrite or not folder.is_dir() or (folder / WORK / SETTINGS).exists():
        return
    if KEY in read_manifest(folder):
        return
    with files.report_errors(folder):
        names = [path.name for path in folder.iterdir()]
    if any(map(WRITTEN.fullmatch, names)):
        raise OutputError(f"{files.show(folder)} already holds samples", TAKEN)
    if media_names := [name for name in names if extension_of(name) in media_by_extension()]:
        text = f"{files.show(folder)} holds {files.show(media_names[0])}, which is not a sample"
        hint = "Choose another -o: of a folder that has samples, train reads nothing else"
        raise OutputError(text, hint)


def check_output_apart(folder: Path, *paths: str) -> None:
    """Refuse an output folder that contains an input, because the input would be replaced.

    Raises:
        UsageError
    """
    for path in map(Path, paths):
        source = path.resolve()
        if folder.resolve() in ((source,) if path.is_dir() else (source, source.parent)):
            text = f"-o {files.show(folder)} holds the input {files.show(path)}"
            raise UsageError(text, "Choose another -o")


@dataclass
class SamplingRecord:
    """Record of a sampling run.

    Attributes:
        folder: the folder of the images.
        settings: the settings that decide their bytes.
        suffix: the suffix of their files.
        hashes: the SHA-256 of each written image by index.
        sides: the file with further arrays of an image by index.
    """

    folder: Path
    settings: Mapping[str, Any]
    suffix: str
    hashes: dict[int, str] = field(default_factory=dict)
    sides: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = json.loads(json.dumps(self.settings))
        self.key = hash_settings(self.settings)
        self.work = self.folder / WORK

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / format_file_name(index, self.suffix)

    # -- by the first process ----------------------------------------------------------------------

    def begin(
        self,
        parts: Sequence[range],
        *,
        overwrite: bool,
        pictures: Collection[str],
        sides: Collection[int],
    ) -> list[range] | None:
        """Start a run, or resume the one in the folder.

        Returns:
            The parts to generate, None if the manifest lists all images and figures.

        Args:
            parts: the images to generate.
            pictures: names of the figures.
            sides: images whose further arrays the figures need.

        Raises:
            OutputError: the folder has samples with other settings, and `overwrite` is false.
            BusyError: a process of an earlier run still writes there.
        """
        for path in sorted(self.work.glob("*.lock")):
            with outputs.hold_lock(path):
                pass
        if overwrite:
            self._clear()
        manifest = read_manifest(self.folder)
        if not manifest and not self._started_images() and not self._recorded_hashes({}):
            files.remove(self.work)
            self._write_settings({})
            return [*parts]
        self._check_same()
        hashes = self._verified_images(self._recorded_hashes(manifest))
        unfinished = (self.work / SETTINGS).exists()
        whole = all(i in hashes for part in parts for i in part)
        exist = (n in manifest.get("files", ()) and (self.folder / n).is_file() for n in pictures)
        if whole and not unfinished and all(exist):
            self.hashes = hashes
            return None
        if not unfinished:
            self._write_settings(hashes)
        for name in (MANIFEST, GRID, GIF):
            files.remove(self.folder / name)
        files.remove_leftovers(self.work)
        lacking = {*sides} - {*self.sides}
        return [p for p in parts if any(i not in hashes or i in lacking for i in p)]

    def _clear(self) -> None:
        """Remove only the files that an earlier run recorded."""
        manifest = read_manifest(self.folder)
        names = [*manifest.get("files", ())]
        names += files.read_json(self.work / SETTINGS).get("files", ())
        names += [self.path(i).name for i in self._started_images()]
        # The manifest is the last, because a repetition reads from it what is left.
        for name in filter(WRITTEN.fullmatch, [*names, *[MANIFEST] * bool(manifest)]):
            files.remove(self.folder / name)
        if (self.work / SETTINGS).exists():
            for name in (GRID, GIF):
                files.remove(self.folder / name)
        files.remove(self.work)

    def _check_same(self) -> None:
        earlier = read_earlier(self.folder)
        earlier_key = earlier[KEY] if isinstance(earlier.get(KEY), str) else hash_settings(earlier)
        if earlier_key == self.key:
            return
        names = (n for n in self.settings if n in earlier and earlier[n] != self.settings[n])
        name = next(names, [*self.settings][-1])
        name = "conditions" if name.startswith("told") else name.replace("_", " ")
        text = f"{files.show(self.folder)} already holds samples with other settings: {name}"
        raise OutputError(text, TAKEN)

    def _write_settings(self, hashes: Mapping[int, str]) -> None:
        """Write the settings and the hashes of the images that exist."""
        listed = {self.path(i).name: hashes[i] for i in sorted(hashes)}
        files.make_folder(self.work)
        files.write_json(self.work / SETTINGS, {KEY: self.settings, "files": listed})

    def _recorded_hashes(self, manifest: Mapping[str, Any]) -> dict[str, set[str]]:
        """Return the recorded hashes of each file, several if it was generated again."""
        first = files.read_json(self.work / SETTINGS) or manifest
        hashes = {name: {value} for name, value in first.get("files", {}).items()}
        for line in self._lines():
            for name, value in line.get("files", {}).items():
                hashes.setdefault(name, set()).add(value)
            path = self.work / f"{line['start']}.npz"
            if "side" in line and path.is_file() and files.sha256(path) == line["side"]:
                self.sides.update(dict.fromkeys(range(line["start"], line["stop"]), path))
        return hashes

    def _started_images(self) -> set[int]:
        """Return the images whose files may have been written."""
        return {i for line in self._lines() for i in range(line["start"], line["stop"])}

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines of all logs."""
        for log in sorted(self.work.glob("*.jsonl")):
            yield from (x for x in files.read_json_lines(log) if {"start", "stop"} <= {*x})

    def _verified_images(self, listed: Mapping[str, Collection[str]]) -> dict[int, str]:
        """Return the images whose files exist and match a hash."""
        image_hashes = {}
        for name, hashes in listed.items():
            stem, dot, suffix = name.partition(".")
            path = self.folder / name
            if not stem.isdecimal() or dot + suffix != self.suffix or not path.is_file():
                continue
            with files.report_errors(path):
                digest = files.sha256(path)
            if digest in hashes:
                image_hashes[int(stem)] = digest
        return image_hashes

    def collect(self) -> None:
        """Read the recorded hashes of the images of all processes that are there."""
        self.sides = {}
        self.hashes = self._verified_images(self._recorded_hashes({}))

    def end(self, manifest: Mapping[str, Any]) -> None:
        """Replace the record by the manifest, and remove files of parts that are not wanted."""
        for i in self._started_images() - {*self.hashes}:
            files.remove(self.path(i))
        files.write_json(self.folder / MANIFEST, manifest)
        files.remove(self.work)

    def abandon(self) -> None:
        """Remove the record of a run that stopped before its first part was complete."""
        lines = [*self._lines()]
        noted = files.read_json(self.work / SETTINGS)["files"]
        if noted or any("files" in line for line in lines):
            return
        for i in self._started_images():
            files.remove(self.path(i))
        files.remove(self.work)

    # -- by each process ---------------------------------------------------------------------------

    def hold_lock(self, rank: int) -> AbstractContextManager[None]:
        """Hold the lock of a process."""
        return outputs.hold_lock(self.work / f"{rank}.lock")

    def add(self, rank: int, part: range, data: Iterator[bytes], side: Arrays) -> None:
        """Write the files of a part, and then its line.

        Args:
            data: the bytes of each file.
            side: arrays to keep with the part until the run ends.
        """
        import numpy as np

        log = self.work / f"{rank}.jsonl"
        line: dict[str, Any] = {"start": part.start, "stop": part.stop}
        # A line that a kill has cut stays apart.
        files.append_line(log, "\n" * log.exists() + json.dumps(line))
        line["files"] = {}
        for i, content in zip(part, data, strict=True):
            files.write_bytes(self.path(i), content)
            line["files"][self.path(i).name] = hashlib.sha256(content).hexdigest()
        if side:
            file = io.BytesIO()
            np.savez(file, allow_pickle=False, **side)
            files.write_bytes(self.work / f"{part.start}.npz", file.getvalue())
            line["side"] = hashlib.sha256(file.getvalue()).hexdigest()
        files.append_line(log, json.dumps(line, separators=(",", ":")))


# -- folders --------------------------------------------------------------------------------------

# Folders of samples: names of their files, and the lock of the process that writes them.

GRID, GIF = "grid.png", "denoising.gif"

GRID_IMAGES = 400
"""Largest number of images in the grid."""

WORK = ".sampling"
"""Name of the record's folder, which lies next to the samples until the run is complete."""

WRITTEN = re.compile(r"\d{5,}\.\w+|grid\.png|denoising\.gif|manifest\.json")


LOCK = ".lock"


def lock_folder(
    folder: Path, owned: str = f"{WRITTEN.pattern}|{re.escape(WORK)}"
) -> AbstractContextManager[None]:
    """Lock a folder, and remove it again if it is new and stays empty.

    Args:
        owned: a regular expression of the names of its files, by default the samples'.
    """
    return outputs.hold_lock(folder / LOCK, owned=owned)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the samples in a folder, empty if there is none."""
    manifest = files.read_json(folder / MANIFEST)
    is_valid = manifest.get("format") == MANIFEST_FORMAT and isinstance(manifest.get("files"), dict)
    return manifest if is_valid else {}


def format_file_name(index: int, suffix: str) -> str:
    """Return the name of a sample's file."""
    return f"{index:05d}{suffix}"
