"""Volumes from the slices of DICOM series in a folder, `FOLDER::series`. Needs pydicom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffuse_cli.data.sources import base, folder
from diffuse_cli.media import array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array import dicom


class Series(folder.Scans):
    """Volumes (D, H, W), one for each series, with slices in the order of their positions."""

    package, extensions = "pydicom", dicom.FORMAT.extensions
    layout = "DHW"

    @staticmethod
    def recognizes(path: Path) -> bool:
        file, selection = base.split_selection(path)
        return selection == "series" and base.is_folder(file)

    def entries(self) -> Iterator[base.Entry]:
        series = defaultdict[str, list[tuple[float, str, int]]](list)
        for entry, place in self.describe_files(dicom.locate_slice):
            if place is None:
                yield entry
            else:
                uid, position = place
                series[uid].append((position, entry.key, entry.size))
        for number, uid in enumerate(sorted(series)):
            _, paths, sizes = zip(*sorted(series[uid]), strict=True)
            # Their extension keeps paths of patients out of the index.
            yield base.Entry(f"{number:06d}.dcm", sum(sizes), "\0".join(paths), label="")

    def read(self, entry: base.Entry) -> bytes:
        entries = [entry._replace(key=path) for path in entry.key.split("\0")]
        slices = [dicom.read(data)[0] for data in map(super().read, entries)]
        if any(values.ndim != 2 or values.shape != slices[0].shape for values in slices):
            raise reasons.Unusable(reasons.SLICES)
        return array.to_npy(np.stack(slices))


SOURCE = Series
