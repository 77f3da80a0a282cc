"""Volumes from the slices of DICOM series in a folder, `FOLDER::series`. Needs pydicom."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffuse_cli.data.sources import base, folder
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array import dicom
from diffuse_cli.system import extra_package, show

ENDING = "::series"


class Series(folder.Folder):
    """Volumes (D, H, W), one for each series, with slices in the order of their positions."""

    layout = "DHW"

    @staticmethod
    def recognizes(path: Path) -> bool:
        return path.name.endswith(ENDING) and base.is_folder(_folder(path))

    def __init__(self, path: Path) -> None:
        extra_package("pydicom", "science", f"pydicom is needed to read {show(path)}")
        super().__init__(_folder(path))

    def entries(self) -> Iterator[base.Entry]:
        series = defaultdict[str, list[tuple[float, str, int]]](list)
        for entry in super().entries():
            if base.extension_of(entry.name) == ".dcm":
                try:
                    uid, position = dicom.locate_slice(entry.key)
                except reasons.Unusable as error:
                    yield entry._replace(fault=error.reason)
                else:
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
        volume, file = np.stack(slices), io.BytesIO()
        np.save(file, volume, allow_pickle=False)
        return file.getvalue()


def _folder(path: Path) -> Path:
    """Return the folder of the slices."""
    return Path(str(path).removesuffix(ENDING))


SOURCE = Series
