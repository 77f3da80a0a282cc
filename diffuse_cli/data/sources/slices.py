"""Slices of the NIfTI volumes in a folder or file, `PATH::slices=PLANE`. Needs nibabel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from diffuse_cli.core.registry import suggest
from diffuse_cli.data.sources import base, folder
from diffuse_cli.media import Array, array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array import nifti
from diffuse_cli.system import DataError, show

PLANES = {"axial": 1, "coronal": 2, "sagittal": 3}
"""Axis of a volume (C, D, H, W) across each plane."""


class Slices(folder.Scans):
    """Slices (H, W) or (C, H, W), named after their volume and their number in it.

    Rows of coronal and sagittal slices run from superior to inferior.

    Raises:
        DataError: there is no such plane.
    """

    package, extensions = "nibabel", nifti.FORMAT.extensions
    layout = "HW"

    @staticmethod
    def recognizes(path: Path) -> bool:
        file, selection = base.split_selection(path)
        is_there = base.is_folder(file) or base.is_file(file)
        return is_there and selection.partition("=")[0] == "slices"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        plane = self.selection.partition("=")[2] or "axial"
        if plane not in PLANES:
            text = f"{show(path)}: there is no plane '{show(plane)}'"
            raise DataError(text, suggest(plane, PLANES), code="unknown_name", path=path)
        self._axis = PLANES[plane]
        self._volumes, self._faults = base.Blocks(), dict[str, str]()

    def entries(self) -> Iterator[base.Entry]:
        for entry, shape in self.describe_files(nifti.read_shape):
            if shape is None:
                yield entry
                continue
            self.layout = "CHW" if shape[0] > 1 else self.layout
            size = 4 * math.prod(shape) // shape[self._axis]
            for k in range(shape[self._axis]):
                name, key = f"{entry.name}-{k:04d}.npy", f"{entry.key}\0{k}"
                yield entry._replace(name=name, size=size, key=key)

    def read(self, entry: base.Entry) -> bytes:
        path, _, number = entry.key.partition("\0")
        # Threads that need slices of the same volume wait for it, even if it is small.
        with reasons.lock_large(math.inf):
            volume = self._read_volume(entry._replace(key=path))
        with reasons.errors_as(reasons.CHANGED):
            values = volume.take(int(number), self._axis)
        values = values if self._axis == PLANES["axial"] else values[:, ::-1]
        return array.to_npy(values[0] if len(values) == 1 else values)

    def _read_volume(self, file: base.Entry) -> Array:
        """Return a volume, which is kept for its other slices, as is the reason of a failure."""
        if file.key in self._faults:
            raise reasons.Unusable(self._faults[file.key])
        volume: Array | None = self._volumes.get(file.key)
        if volume is None:
            try:
                volume = nifti.read_volume(super().read(file))
            except reasons.Unusable as error:
                self._faults[file.key] = error.reason
                raise
            self._volumes.add(file.key, volume)
        return volume


SOURCE = Slices
