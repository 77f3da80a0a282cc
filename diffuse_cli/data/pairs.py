"""Pairs: samples, and another array beside each, found by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.data.samples import Samples
from diffuse_cli.data.summary import NAMED, plural
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.files import show

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Pairs:
    """What lies beside each of N samples.

    Attributes:
        samples: the N.
        given: what lies beside them, at their size, in an order of its own.
        rows: int64 (N,), the place in `given` of what belongs to each; -1 for none.
    """

    samples: Samples
    given: Samples
    rows: npt.NDArray[np.int64]

    @property
    def matched(self) -> npt.NDArray[np.bool_]:
        """bool (N,): the samples that have something beside them."""
        found: npt.NDArray[np.bool_] = self.rows >= 0
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what lies beside what, independent of names, order and resizing."""
        own, theirs = self.samples.digests[self.matched], self.given.digests
        both = np.concatenate([own, theirs[self.rows[self.matched]]], 1)
        rows = sorted(row.tobytes() for row in both)
        return sha256(b"pairs %d\n" % len(rows) + b"".join(rows)).hexdigest()

    def beside(self, indices: npt.NDArray[np.int64]) -> Array:
        """What lies beside these samples, as stored: (B, C, *size).

        Each must be `matched`.
        """
        found: Array = self.given.stored[self.rows[indices]]
        return found

    def cut(self, part: Any) -> Pairs:
        """The same pairs, of which `given.stored[part]` alone lies beside each sample."""
        return replace(self, given=replace(self.given, stored=self.given.stored[part]))

    def missing(self) -> Iterator[str]:
        """A sentence for each side that has samples without another half."""
        used = np.zeros(len(self.given), np.bool_)
        used[self.rows[self.matched]] = True
        for side, lone in ((self.samples, ~self.matched), (self.given, ~used)):
            if names := [side.names[k] for k in np.flatnonzero(lone)[: NAMED + 1]]:
                more = ", ..." if len(names) > NAMED else ""
                listed = ", ".join(map(show, names[:NAMED]))
                count = plural(int(lone.sum()), "image")
                yield f"{count} of {side.summary.source} without a pair, left out: {listed}{more}"


def pair(samples: Samples, given: Samples) -> Pairs:
    """Find what lies beside each sample: a file of the same path, or of the same but for its
    extension; below the folders that all files of a side share, if no path is the same.

    Raises:
        DataError: nothing has a pair.
    """
    for own, theirs in (
        (samples.names, given.names),
        (_below(samples.names), _below(given.names)),
    ):
        rows = _rows(own, theirs)
        if (rows >= 0).any():
            return Pairs(samples, given, rows)
    first = ", ".join(show(side.names[0]) for side in (samples, given))
    raise DataError(
        f"no image of {samples.summary.source} has its pair in {given.summary.source}, by name: "
        f"such as {first}",
        "Give a pair the same name in both, and the same folders; the extensions may differ",
    )


def _rows(own: Sequence[str], theirs: Sequence[str]) -> npt.NDArray[np.int64]:
    """The place in `theirs` of each name of `own`, -1 for none."""
    whole = {name: k for k, name in enumerate(theirs)}
    stems = {_stem(name): k for k, name in reversed(list(enumerate(theirs)))}
    return np.array([whole.get(n, stems.get(_stem(n), -1)) for n in own], np.int64)


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    return folder + slash + (stem if dot else extension)


def _below(names: Sequence[str]) -> list[str]:
    """The names below the folders that all of them share."""
    folders = [name.split("/")[:-1] for name in (min(names), max(names))]
    depth = 0
    for one, other in zip(*folders, strict=False):
        if one != other:
            break
        depth += 1
    return [name.split("/", depth)[-1] for name in names]
