"""Features of real images, kept between evaluations.

They lie in `DIFFUSE_CACHE`, by default `diffuse` in the user's cache folder; an empty
`DIFFUSE_CACHE` turns the cache off. The cache never fails: what cannot be read is computed again,
what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from diffuse_cli.core.space import Space
from diffuse_cli.media import Array
from diffuse_cli.metrics import kid
from diffuse_cli.metrics.features import FeatureNetwork, extract, usual_batch
from diffuse_cli.sampling.generation import Loaded, collect, draw
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system import __version__, files
from diffuse_cli.system.errors import OutputError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.rng import share

# -- team -----------------------------------------------------------------------------------------

# Several processes in one evaluation, with the same numbers as one process.

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """`size` processes, of which this is the `index`-th.

    Batches are never split, since rounding depends on what else is in a batch.
    """

    size: int = 1
    index: int = 0

    @classmethod
    def of(cls, accelerator: Accelerator) -> Team:
        """The processes that a launcher started."""
        return cls(accelerator.num_processes, accelerator.process_index)

    def share(self, n: int, batch_size: int) -> range:
        """This process's part of 0 ... n-1: from the start of a batch to the end of one."""
        batches = share(-(-n // batch_size), self.size, self.index)
        return range(min(batches.start * batch_size, n), min(batches.stop * batch_size, n))

    def gather(self, part: T) -> list[T]:
        """Every process's part, in their order; each process must call it."""
        if self.size == 1:
            return [part]
        return list(gather_object([part]))

    def from_first(self, value: T) -> T:
        """The first process's value; each process must call it."""
        if self.size == 1:
            return value
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


ALONE = Team()


def draw_share(
    settings: DrawSettings, loaded: Loaded, n: int, device: torch.device, team: Team, first: int = 0
) -> Work[dict[int, Array]]:
    """This process's share of n stored samples (C, *size), by index from `first` on."""
    own, space = team.share(n, settings.batch_size), loaded.space
    own = range(first + own.start, first + own.stop)
    mine: dict[int, Array] = {}
    drawings = draw(loaded.denoiser, settings, own, space=space, device=device)
    yield from collect(drawings, space, len(own), mine)
    return mine


def gathered(mine: dict[int, Array], n: int, team: Team, first: int = 0) -> Array:
    """The samples of all processes, (n, C, *size); every process must call it."""
    pixels = {i: image for part in team.gather(mine) for i, image in part.items()}
    return np.stack([pixels[i] for i in range(first, first + n)])


def draw_all(
    settings: DrawSettings, loaded: Loaded, n: int, device: torch.device, team: Team, first: int = 0
) -> Work[Array]:
    """Draw the n samples from `first` on, a share of them in each process."""
    mine = yield from draw_share(settings, loaded, n, device, team, first)
    return gathered(mine, n, team, first)


NAMED = re.compile("[0-9a-f]{64}")
"""The stems of its files; others in the folder are not its own."""

LARGEST = 2**30
"""Bytes to keep; the least recently used files go first."""


def computed(network: FeatureNetwork, pixels: Array, team: Team = ALONE) -> Work[Array]:
    """The features, float32 (N, network.dim), of pixels uint8 (N, C, H, W).

    Each process computes a part of them.
    """
    own = team.share(len(pixels), usual_batch(network))
    part: Array = yield from extract(network, pixels[own.start : own.stop])
    return np.concatenate(team.gather(part))


def cached(
    network: FeatureNetwork, pixels: Array, team: Team = ALONE, *, tell: bool = False
) -> Work[Array]:
    """`computed`, or its earlier result for the same pixels and network, which `tell` announces.

    Random features are never kept: they are quick, and depend on more than the samples.
    """
    if not network.pictures:
        return (yield from computed(network, pixels, team))
    # The first process decides for all, which may see another folder.
    folder = files.cache_folder() if team.index == 0 else None
    path = folder / f"{_key(network, pixels)}.npz" if folder else None
    found = team.from_first(_read(path, (len(pixels), network.dim)) if path else None)
    if found is not None:
        if folder and tell:
            where = files.show(folder)
            yield Notice(f"features of the real images: as computed before, from {where}")
        return found
    features: Array = yield from computed(network, pixels, team)
    if path:
        _write(path, features)
    return features


def _key(network: FeatureNetwork, pixels: Array) -> str:
    """A hash of everything that features depend on, down to rounding.

    The pixels cover the data: which images, in which order, how resized, on which background. They
    do not cover how the network resizes them again, or the code.
    """
    own = (network.name, network.weights, network.resize, network.device.type)
    found = hashlib.sha256(repr((*own, __version__, torch.__version__, pixels.shape)).encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> Array | None:
    """The features in `path`, or None if it does not hold them whole."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            features: Array = kept["features"]
    except Exception:  # of damaged bytes NumPy and zipfile raise many kinds
        return None
    if features.shape != shape or features.dtype != np.float32 or not np.isfinite(features).all():
        return None
    with contextlib.suppress(OSError):  # it may be another user's
        os.utime(path)
    return features


def _write(path: Path, features: Array) -> None:
    if features.nbytes > LARGEST:
        return
    with contextlib.suppress(OutputError, OSError):
        with files.writing(path) as file:
            np.savez(file, features=features)
        _shrink(path.parent)


def _shrink(folder: Path) -> None:
    """Remove the least recently used features beyond `LARGEST` bytes."""
    own = (path for path in folder.glob("*.npz") if NAMED.fullmatch(path.stem))
    kept = [(path.stat(), path) for path in own]
    total = 0
    for info, path in sorted(kept, key=lambda item: -item[0].st_mtime):
        total += info.st_size
        if total > LARGEST:
            path.unlink(missing_ok=True)


# -- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureMeasure:
    """Measures generated samples against the same real ones, by features of a network.

    Attributes:
        space: of stored samples.
        real: float64 features of the real samples, (N, network.dim).
    """

    network: FeatureNetwork
    space: Space
    real: Array
    team: Team

    @classmethod
    def of(cls, network: FeatureNetwork, space: Space, real: Array, team: Team) -> Work[Self]:
        """Return the measure against stored real samples (N, C, *size)."""
        found = yield from cached(network, network.seen(space, real), team, tell=True)
        return cls(network, space, np.asarray(found, np.float64), team)

    def features(self, samples: Array) -> Work[Array]:
        """Return float64 features of stored samples (N, C, *size)."""
        seen = self.network.seen(self.space, samples)
        return np.asarray((yield from computed(self.network, seen, self.team)), np.float64)

    def kid(self, features: Array) -> dict[str, float]:
        """Return the KID of generated samples, by features, and its standard error, by key."""
        return kid.estimate(self.real, features, self.network.kid)
