"""Cache of the features of real images, and features on several processes.

The cache is in `DIFFUSE_CACHE`, by default `diffuse` in the user's cache folder. An empty
`DIFFUSE_CACHE` turns it off. The cache never fails: unreadable features are computed again, and
features that cannot be written are not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics.features import FeatureNetwork, extract_features, usual_batch
from diffuse_cli.system import Notice, OutputError, Work, __version__, files
from diffuse_cli.system.team import ALONE, Team

NAMED = re.compile("[0-9a-f]{64}")
"""Stems of the cache's files. The cache ignores other files in the folder."""

LARGEST = 2**30
"""The most bytes to keep. The least recently used files are removed first."""


def compute_features(network: FeatureNetwork, pixels: Array, team: Team = ALONE) -> Work[Array]:
    """Compute the features, float32 (N, network.dim), of pixels uint8 (N, C, H, W).

    Each process computes a part of them.
    """
    indices = team.share(len(pixels), usual_batch(network))
    part: Array = yield from extract_features(network, pixels[indices.start : indices.stop])
    return np.concatenate(team.gather(part))


def cache_features(
    network: FeatureNetwork, pixels: Array, team: Team = ALONE, *, tell: bool = False
) -> Work[Array]:
    """Return cached features of the same pixels and network, or compute them.

    Random features are never kept, because they are quick and depend on more than the samples.

    Args:
        tell: whether to report the use of cached features.
    """
    if not network.pictures:
        return (yield from compute_features(network, pixels, team))
    # The first process decides for all, which may see another folder.
    folder = files.cache_folder() if team.index == 0 else None
    path = folder / f"{_key(network, pixels)}.npz" if folder else None
    cached_features = team.from_first(_read(path, (len(pixels), network.dim)) if path else None)
    if cached_features is not None:
        if folder and tell:
            where = files.show(folder)
            yield Notice(f"using cached features of the real images from {where}")
        return cached_features
    features: Array = yield from compute_features(network, pixels, team)
    if path:
        _write(path, features)
    return features


def _key(network: FeatureNetwork, pixels: Array) -> str:
    """Return a hash of everything that features depend on, down to rounding.

    The pixels cover the choice of images, their order, their size and their background. They do not
    cover the network's own resizing, or the code.
    """
    facts = (network.name, network.weights, network.resize, network.device.type)
    digest = hashlib.sha256(repr((*facts, __version__, torch.__version__, pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> Array | None:
    """Read the features in `path`, or return None if they are missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            features: Array = archive["features"]
    except Exception:  # NumPy and zipfile raise many kinds of errors for damaged bytes
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
        with files.replace_file(path) as file:
            np.savez(file, features=features)
        _shrink(path.parent)


def _shrink(folder: Path) -> None:
    """Remove the least recently used features beyond `LARGEST` bytes."""
    paths = (path for path in folder.glob("*.npz") if NAMED.fullmatch(path.stem))
    cache_files = [(path.stat(), path) for path in paths]
    total = 0
    for info, path in sorted(cache_files, key=lambda item: -item[0].st_mtime):
        total += info.st_size
        if total > LARGEST:
            path.unlink(missing_ok=True)
