"""Detection of label maps among conditioning images, and the names of their classes."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping, Set
from itertools import islice
from pathlib import Path

import numpy as np

from diffuse_cli.core import LABELS
from diffuse_cli.data import sources
from diffuse_cli.media import MEDIA, Array, ReadSettings, Unusable
from diffuse_cli.media.image.label_maps import INDEXED
from diffuse_cli.system import DataError, show

FEWEST, MOST = 3, 32
"""The number of labels from which on images are label maps by themselves, and the most labels then.
Images of two levels are masks or edges."""

LOOKED_AT = 256
"""Number of files that are looked at before all are read as label maps."""

NAMES, LARGEST_TABLE = "labels.csv", 2**20
"""File with the names of the classes, in columns `value` and `name`, and its largest size."""


def survey_labels(path: str) -> tuple[Array, set[str]] | None:
    """Read some images of a source as label maps, up to the first that has too many labels.

    Returns:
        The number of pixels with each label, (256,), and the modes of the files, or None if images
        are not label maps.
    """
    counts, modes = np.zeros(256, np.int64), set[str]()
    with contextlib.closing(sources.open_source(Path(path), single=True)) as source:
        files = sources.list_samples(source, "image").candidates
        for data in sources.read_subset(source, files, LOOKED_AT):
            try:
                read = MEDIA["image"].read(data, ReadSettings(layout=LABELS))
            except Unusable:
                return None
            levels = np.unique(read.values)
            if len(levels) > MOST or (read.mode != INDEXED and levels[-1] >= MOST):
                return None
            counts += np.bincount(read.values.ravel(), minlength=256)
            modes.add(read.mode)
    return counts, modes


def are_labels(counts: Array, modes: Set[str]) -> bool:
    """Whether images that were read as label maps are label maps by themselves.

    All have palettes of colors, or together they have the levels 0, 1, ... without a gap.

    Args:
        counts: the number of pixels with each label, (256,).
        modes: the modes of the files.
    """
    values = np.flatnonzero(counts)
    if not FEWEST <= len(values) <= MOST:
        return False
    return modes == {INDEXED} or int(values[-1]) == len(values) - 1


def measure_fractions(path: str) -> dict[str, float]:
    """Return the fraction of each label in some images, empty if they are not label maps.

    The keys are the names of the labels, or their values without names.
    """
    survey = survey_labels(path)
    if survey is None or not are_labels(*survey):
        return {}
    shares, names = survey[0] / survey[0].sum(), read_label_names(path)
    return {names.get(k, str(k)): shares[k] for k in np.flatnonzero(shares).tolist()}


def read_label_names(path: str) -> Mapping[int, str]:
    """Return the names of labels in the file `NAMES` of a source, none without the file.

    Raises:
        DataError: the file is not a table of different labels with different names.
    """
    with contextlib.closing(sources.open_source(Path(path), single=True)) as source:
        entries = (e for e in source.entries() if e.name.rpartition("/")[2] == NAMES)
        data = b"".join(source.read_table(entry, LARGEST_TABLE) for entry in islice(entries, 1))
    lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig", "replace")))
    try:
        rows = [(int(line["value"]), line["name"].strip()) for line in lines]
    except (KeyError, ValueError, AttributeError, csv.Error):
        rows = [(-1, "")]
    names = dict(rows)
    if "" in names.values() or len({*names.values()}) < len(rows) or (data and not rows):
        raise DataError(
            f"{NAMES} of {show(path)} is not a table of labels and their names",
            "Write a first line value,name and a line such as 1,road for each label",
            code="metadata_unreadable",
            path=path,
        )
    return names
