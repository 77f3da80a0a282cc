"""Scores of ensembles: several samples with the same condition, compared with the real sample.

Every value belongs to one real sample, a field, and its members. Points of a field depend on each
other, so standard errors and the chance band of ranks are over fields, never over points. This
needs no thinning of points, and no length of their dependence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional

from diffuse_cli.media import Array
from diffuse_cli.metrics import spectrum
from diffuse_cli.metrics.estimates import measure_inner_variance, moments

EDGES = 2.0 ** np.arange(-5, 2)
"""Edges of the bins of spread, in standard deviations of real values."""

LEAST = 1e-300

# Scores of one field, by channel.


def fair_crps(members: Array, truth: Array) -> Array:
    """Return the fair CRPS of members (M, ...) at each point of the truth (...).

    The expected value is the CRPS of the distribution of the members, for every M of at least 2.
    """
    # Ferro 2014, with the sum of all distances from the sorted members.
    count = len(members)
    ranks = np.arange(1 - count, count, 2).reshape(-1, *[1] * truth.ndim)
    between = (ranks * np.sort(members, 0)).sum(0) / (count * (count - 1))
    return np.asarray(np.abs(members - truth).mean(0) - between)


def energy_score(members: Array, truth: Array) -> Array:
    """Return the fair energy score of members (M, C, P) by channel, (C,)."""
    # Gneiting & Raftery 2007, eq. 22, with the root mean square over points as the norm.
    count = len(members)

    def norm(differences: Array) -> Array:
        return np.asarray(np.sqrt(np.square(differences).mean(-1)))

    between = sum(norm(members[i + 1 :] - members[i]).sum(0) for i in range(count - 1))
    return np.asarray(norm(members - truth).mean(0) - between / (count * (count - 1)))


def rank_frequencies(members: Array, truth: Array) -> Array:
    """Return the frequency of each rank of the truth (C, P) among members (M, C, P), (C, M + 1).

    A truth that equals members counts evenly for all ranks that it could have.
    """
    channels, points = truth.shape
    below, equal = (members < truth).sum(0), (members == truth).sum(0)
    changes, rows = np.zeros((channels, len(members) + 2)), np.arange(channels)[:, None]
    np.add.at(changes, (rows, below), 1 / (equal + 1))
    np.add.at(changes, (rows, below + equal + 1), -1 / (equal + 1))
    return np.asarray(changes.cumsum(1)[:, :-1] / points)


def list_widths(size: Sequence[int]) -> list[int]:
    """Return the widths of the blocks of blurred samples: powers of two below the shortest side."""
    return [2**k for k in range(1, 12) if 2**k < min(size)]


@dataclass
class EnsembleScores:
    """Values of ensembles, one field after another.

    Attributes:
        members: the number of members.
        scale, variances: the standard deviation of real values by channel, and the variance
            about the mean of each sample.
        shells: the shells of frequencies of the spectra.
        fields: the values of each field by key, (C,) or (C, K).
        maps: the sums over fields of the `error` of the mean, of its square, and of the square
            that the spread says it has (`squared_spread`), (C, *size).
        last: the truth of the last field.
    """

    members: int
    scale: Array
    variances: Array
    shells: spectrum.Shells
    fields: list[dict[str, Array]] = field(default_factory=list)
    maps: dict[str, Array] = field(default_factory=dict)
    last: Array | None = None

    @classmethod
    def from_real(cls, members: int, real: Array) -> EnsembleScores:
        """Return scores without fields, with the scale of real samples (N, C, *size)."""
        scale = moments(real).deviation
        shells, variances = spectrum.shells(real.shape[2:]), measure_inner_variance(real)
        return cls(members, np.where(scale > 0, scale, 1.0), variances, shells)

    def __getitem__(self, chosen: Array) -> EnsembleScores:
        """Return the values of some fields, by a mask."""
        return replace(self, fields=[self.fields[k] for k in np.flatnonzero(chosen)])

    def add(self, members: Array, truth: Array, climate: Array, given: Array | None) -> None:
        """Add a field.

        Args:
            members: the stored members, (M, C, *size).
            truth: the stored real sample, (C, *size).
            climate: other real samples as members of the climatology, (K, C, *size).
            given: the conditioning image in the space of the sample, if it has one.
        """
        members, truth, climate = (x.astype(np.float64) for x in (members, truth, climate))
        flat, flat_truth = members.reshape(*members.shape[:2], -1), truth.reshape(len(truth), -1)
        error, spread = _error_and_spread(members, truth)
        maps = {"error": error, "squared_error": error**2, "squared_spread": spread}
        self.maps = {key: self.maps.get(key, 0) + values for key, values in maps.items()}
        scores = {
            "crps": fair_crps(members, truth),
            "crps_of_mean_field": fair_crps(flat.mean(2), flat_truth.mean(1)),
            "mae_of_mean": np.abs(error),
            **maps,
        }
        if len(climate) > 1:
            scores["crps_of_climatology"] = fair_crps(climate, truth)
        if given is not None:
            scores["crps_of_given"] = np.abs(given.astype(np.float64) - truth)
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[truth.ndim - 2]
        for width in list_widths(truth.shape[1:]):
            pooled = (pool(torch.from_numpy(x), width).numpy() for x in (members, truth))
            scores[f"blur_{width}"] = fair_crps(*pooled)
        values = {key: score.reshape(len(truth), -1).mean(1) for key, score in scores.items()}
        values["energy_score"] = energy_score(flat, flat_truth)
        values["ranks"] = rank_frequencies(flat, flat_truth)
        values |= self._bin_spread(flat, flat_truth)
        sides = np.concatenate([members, (truth + error)[None], truth[None]])
        power = spectrum.powers(sides, self.shells, self.variances)
        for name, rows in (("members", power[:-2]), ("mean", power[-2:-1]), ("real", power[-1:])):
            values[f"power_{name}"] = rows.mean(0, keepdims=True)
        previous = np.full(truth.shape, np.nan) if self.last is None else self.last
        distances = np.square([truth + error - previous, error]).reshape(2, len(truth), -1).mean(2)
        values["farther"] = -np.diff(np.log(np.maximum(distances, LEAST)), axis=0)[0]
        self.fields.append(values)
        self.last = truth

    def _bin_spread(self, members: Array, truth: Array) -> dict[str, Array]:
        """Return sums of squared spread and error by bin of spread, (C, B), in real variances.

        The bin of a point is of half of its members, and the sums are of the other half. Else bins
        would sort points by chance, and bins of low spread would seem to have too little.
        """
        half = len(members) // 2 * (len(members) > 3)
        _, place = _error_and_spread(members[:half] if half else members, truth)
        error, spread = _error_and_spread(members[half:], truth)
        scale, bins = np.square(self.scale)[:, None], len(EDGES) + 1
        places = np.searchsorted(np.square(EDGES), place / scale)
        places += bins * np.arange(len(scale))[:, None]
        parts = {"spread": spread / scale, "error": error**2 / scale, "count": np.ones_like(spread)}
        sums = {k: np.bincount(places.flat, x.flat, bins * len(scale)) for k, x in parts.items()}
        return {f"bin_{key}": values.reshape(-1, bins) for key, values in sums.items()}

    def column(self, key: str) -> Array:
        """Return the values of all fields, (N, C) or (N, C, K)."""
        return np.stack([values[key] for values in self.fields])


def _error_and_spread(members: Array, truth: Array) -> tuple[Array, Array]:
    """Return the error of the mean of members, and the square that the spread says it has."""
    # Fortin et al. 2014: the mean of M members has 1 / M of their variance more error.
    error, variance = members.mean(0) - truth, members.var(0, ddof=1)
    return np.asarray(error), np.asarray((1 + 1 / len(members)) * variance)
