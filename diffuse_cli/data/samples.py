"""A set of samples of one size, in memory or mapped from a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.space import Space
from diffuse_cli.data.measuring import limited, measured, moments
from diffuse_cli.data.summary import Summary
from diffuse_cli.media import MEDIA

HELD_OUT_OF = 20
HELD_OUT_MINIMUM = 40

FEW = 64
"""Samples that say roughly how floats spread."""


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples, in the byte order of their names.

    Attributes:
        stored: (N, C, *size); an array, a read-only `numpy.memmap`, or a `streaming.Streamed`,
            which decodes samples as they are looked up.
        labels: int64 (N,), indices of `class_names`; -1 outside class folders.
        names: paths inside the source; print them with `files.show`.
        digests: uint8 (N, 16), a hash of each sample before resizing.
        medium: its name in `MEDIA`.
        rows: what tables say of each, for a model that is told it: codes of its columns, float32
            (N, columns).
        layout: the axes of a sample in its file, if the medium knows several.
        transform: of floats, a name in `TRANSFORMS`.
        rate: of sounds, in Hz.
    """

    stored: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    summary: Summary
    medium: str = "image"
    rows: npt.NDArray[np.float32] | None = None
    layout: str | None = None
    transform: str | None = None
    rate: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def space(self) -> Space:
        """The space of each sample; the mean and deviation of floats are those of the samples that
        are trained on, the limits of levels those of all.

        Raises:
            DataError: floats that the transform is not defined for, or that never vary.
            InvalidArgument: a transform of levels.
        """
        found = replace(self.unmeasured, transform=self.transform)
        if found.levels is not None:
            return limited(found, self.stored)
        return measured(found, self.stored, np.flatnonzero(~self.held_out), self.names)

    @property
    def unmeasured(self) -> Space:
        """The space without a transform and limits, and with no more than a guess at the mean and
        deviation of floats: those of a few samples."""
        found = replace(MEDIA[self.medium].space(self.stored), layout=self.layout, rate=self.rate)
        if found.levels is not None:
            return found
        mean, std = moments(found, self.stored, np.arange(min(len(self), FEW)), self.names)
        spread = np.where(std > 0, std, 1.0)
        return replace(found, mean=tuple(mean.tolist()), std=tuple(spread.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the set, independent of names, order and resizing."""
        return _fingerprint(self.digests)

    @cached_property
    def class_fingerprints(self) -> dict[str, str]:
        """The `fingerprint` of each class."""
        order = np.argsort(self.labels, kind="stable")
        bounds = np.searchsorted(self.labels[order], np.arange(len(self.class_names) + 1))
        return {
            name: _fingerprint(self.digests[order[bounds[k] : bounds[k + 1]]])
            for k, name in enumerate(self.class_names)
        }

    @cached_property
    def rows_fingerprint(self) -> str:
        """SHA-256 of what is told of what, independent of names and order; empty without rows."""
        if self.rows is None:
            return ""
        codes = np.ascontiguousarray(self.rows, "<f4").view(np.uint8)
        return _fingerprint(np.concatenate([self.digests, codes], 1))

    @cached_property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """bool (N,): the samples that are never trained on, by `held_out_rule`."""
        return held_out(self.digests)


def held_out(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """bool (N,): which samples of these digests, (N, 16), are never trained on."""
    if len(digests) < HELD_OUT_MINIMUM:
        return np.zeros(len(digests), dtype=np.bool_)
    numbers = (int.from_bytes(row.tobytes(), "big") for row in digests)
    chosen = np.fromiter((n % HELD_OUT_OF == 0 for n in numbers), np.bool_, len(digests))
    # Copies of one sample are all held out, or none: something must be left to train on.
    return np.zeros_like(chosen) if chosen.all() else chosen


def _fingerprint(digests: npt.NDArray[np.uint8]) -> str:
    rows = sorted(row.tobytes() for row in digests)
    return sha256(b"%d\n" % len(rows) + b"".join(rows)).hexdigest()


def held_out_rule() -> dict[str, Any]:
    """The rule for the header of a model file."""
    return {
        "rule": f"xxh3-128 of the decoded pixels, modulo {HELD_OUT_OF}, is 0",
        "minimum": HELD_OUT_MINIMUM,
    }
