"""Write and open a data set on disk: mapped samples, and an index of everything else."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.data import summary
from diffuse_cli.data.samples import Dataset
from diffuse_cli.data.store import INDEX, PIXELS, map_file, remove_index
from diffuse_cli.data.stream import Stream, StreamArray, find_stream, lists_to_tuples
from diffuse_cli.system import DataError, files

PLAIN = ("class_names", "names", "medium", "layout", "transform", "rate")
"""Attributes of a `Dataset` that are written as they are."""


def save_index(images: Dataset, folder: Path) -> None:
    """Write a data set into `folder`, except samples that are already mapped from it.

    Raises:
        OutputError: the folder cannot be written.
    """
    stream = find_stream(images.stored)
    stored = stream.kept_samples if stream else images.stored
    path, mapped = folder / PIXELS, getattr(stored, "filename", None)
    if mapped is None or not path.exists() or not path.samefile(mapped):
        remove_index(folder)
        files.write_bytes(path, stored.tobytes())
    meta = {
        "shape": stored.shape,
        "dtype": stored.dtype.str,
        **{name: getattr(images, name) for name in PLAIN},
        "summary": images.summary.to_dict(),
        "stream": stream.to_dict() if stream else None,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        labels=images.labels,
        digests=images.digests,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
    )
    files.write_bytes(folder / INDEX, buffer.getvalue())


def open_index(folder: Path) -> Dataset:
    """Open the data set that `save_index` wrote into `folder`, mapped read-only.

    Raises:
        DataError: the folder has no index, or it is damaged.
    """
    try:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            labels, digests = index["labels"], index["digests"]
            meta = json.loads(index["meta"].tobytes())
        shape, dtype = tuple(meta["shape"]), np.dtype(meta["dtype"])
        if (folder / PIXELS).stat().st_size != math.prod(shape) * dtype.itemsize:
            raise ValueError("the samples do not match the index")
        stored: Any = map_file(folder / PIXELS, shape, dtype)
        if meta["stream"]:
            stored = StreamArray(Stream.from_dict(meta["stream"], digests, stored))
        plain: dict[str, Any] = dict(zip(PLAIN, lists_to_tuples(map(meta.get, PLAIN)), strict=True))
        return Dataset(
            stored=stored,
            labels=labels,
            digests=digests,
            summary=summary.from_dict(meta["summary"]),
            **plain,
        )
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"no image cache in {files.show(folder)}: {error}") from error
