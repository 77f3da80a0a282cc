"""A set of images in memory or mapped from a file, all of one size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.space import Space
from diffuse_cli.data.summary import Summary
from diffuse_cli.media import MEDIA

HELD_OUT_OF = 20
HELD_OUT_MINIMUM = 40


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples with their labels, names and digests, in the byte order of their names.

    Attributes:
        stored: (N, C, *size); an array, or a read-only `numpy.memmap`.
        labels: int64 (N,), the place in `class_names`, -1 for an image outside class folders.
        class_names: the classes.
        names: paths inside the source; pass them through `files.show` to print them.
        digests: uint8 (N, 16), a hash of each sample before it was resized.
        summary: what was found.
        medium: what the samples are.
    """

    stored: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    summary: Summary
    medium: str = "image"

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def space(self) -> Space:
        """What each of them is."""
        return MEDIA[self.medium].space(self.stored)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the set of images in hexadecimal, whatever their names, order and size."""
        return _fingerprint(self.digests)

    @cached_property
    def class_fingerprints(self) -> dict[str, str]:
        """The `fingerprint` of the images of each class, by its name."""
        order = np.argsort(self.labels, kind="stable")
        bounds = np.searchsorted(self.labels[order], np.arange(len(self.class_names) + 1))
        return {
            name: _fingerprint(self.digests[order[bounds[k] : bounds[k + 1]]])
            for k, name in enumerate(self.class_names)
        }

    @cached_property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """bool (N,): the images that are never trained on, by the rule of `held_out_rule`."""
        if len(self) < HELD_OUT_MINIMUM:
            return np.zeros(len(self), dtype=np.bool_)
        numbers = (int.from_bytes(row.tobytes(), "big") for row in self.digests)
        chosen = np.fromiter((n % HELD_OUT_OF == 0 for n in numbers), np.bool_, len(self))
        # Copies of one image fall on one side: where all of them would, there is nothing to train.
        return np.zeros_like(chosen) if chosen.all() else chosen


def _fingerprint(digests: npt.NDArray[np.uint8]) -> str:
    rows = sorted(row.tobytes() for row in digests)
    return sha256(b"%d\n" % len(rows) + b"".join(rows)).hexdigest()


def held_out_rule() -> dict[str, Any]:
    """Which images are held out, for the header of a model file."""
    return {
        "rule": f"xxh3-128 of the decoded pixels, modulo {HELD_OUT_OF}, is 0",
        "minimum": HELD_OUT_MINIMUM,
    }
