"""Inputs of metrics: features, bits, distances and statistics of real and generated samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffuse_cli.core.space import Space
from diffuse_cli.media import Array
from diffuse_cli.metrics.channel_distributions import Marginals
from diffuse_cli.metrics.sample_statistics import halves
from diffuse_cli.system.errors import UsageError


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training image in one space.

    Attributes:
        samples, references: of generated images (N,) and of images that are no copies (M,).
        places: the index of the training image nearest to each generated one, (N,).
    """

    samples: Array
    references: Array
    places: Array


@dataclass(frozen=True)
class Answers:
    """Numbers of each real image, (M,) by key.

    Attributes:
        rows: their places among the real images.
        first: the first samples themselves, (K, C, *size) by what they are.
    """

    values: Mapping[str, Array]
    rows: Array
    first: Mapping[str, Array] = field(default_factory=dict)

    def __getitem__(self, chosen: Array) -> Answers:
        """Those of some of the real images, by truth values of all of them."""
        own = chosen[self.rows]
        return Answers({key: value[own] for key, value in self.values.items()}, self.rows[own])


@dataclass(frozen=True)
class Shells:
    """Where the frequencies of a real Fourier transform fall.

    Attributes:
        frequencies: the mean of each shell, ascending, (S,).
        counts: of frequencies in each, but 0: together one less than the points.
        order, starts: places of the flattened transform by shell, and where each shell starts.
        weights: how many frequencies each of these places stands for: 1, or 2 with its mirror.
    """

    frequencies: Array
    counts: Array
    order: Array
    starts: Array
    weights: Array


@dataclass(frozen=True)
class Spectra:
    """The power of each sample in each shell, (N, S), real and generated.

    The mean over channels of the periodogram |X|^2 / points, less the sample's mean, over the
    variance of real samples about their means: 1 at every frequency for white noise of their
    variance. Summed with `shells.counts` it is points times the variance (Parseval's theorem).
    """

    shells: Shells
    real: Array
    fake: Array
    more: Array

    def of(self, real: Array, fake: Array, more: Array) -> Spectra:
        """Those of some samples alone, by masks."""
        return Spectra(self.shells, self.real[real], self.fake[fake], self.more[more])


def _no_rows(columns: int = 0) -> Any:
    return field(default_factory=lambda: np.zeros((0, columns)))


@dataclass(kw_only=True)
class MetricInputs:
    """The parts of an evaluation, of which a metric reads those that its `NEEDS` name.

    Attributes:
        space: of the samples.
        real_features, fake_features, more_features: `features` or `random_features`, float32
            (N, d), (M, d) and (K, d); the last are of further real images, if there are any.
        landmarks: features of images known to be bad, by their names.
        bits, train_bits: bits per dimension of held-out and of training images, (N, 3) and (M, 3):
            L_T, L_1 + ... + L_T-1, L_0.
        nearest: distances to training images by the name of the space.
        answers: of a model that is given something, how what it draws fits that.
        marginals: of the numbers of real and generated samples, by channel.
        spectra: the power of real and generated samples by frequency.
    """

    space: Space
    real_features: Array = _no_rows()
    fake_features: Array = _no_rows()
    more_features: Array = _no_rows()
    landmarks: dict[str, Array] = field(default_factory=dict)
    bits: Array = _no_rows(3)
    train_bits: Array = _no_rows(3)
    nearest: dict[str, Nearest] = field(default_factory=dict)
    answers: Answers = field(default_factory=lambda: Answers({}, np.zeros(0, np.int64)))
    marginals: Marginals = field(init=False)
    spectra: Spectra = field(init=False)

    @property
    def floats(self) -> bool:
        """Whether samples are floats, whose bound is a density's."""
        return self.space.levels is None


def both(evaluation: MetricInputs, metric: str) -> tuple[Array, Array]:
    """Real and fake features in float64; a `UsageError` for fewer than two on a side."""
    real, fake = evaluation.real_features, evaluation.fake_features
    if min(len(real), len(fake)) < 2:
        raise UsageError(
            f"{metric} needs two images on each side, not {len(real)} real and {len(fake)} fake",
            "Raise -n, or give more images",
        )
    return real.astype("float64"), fake.astype("float64")


def floor(evaluation: MetricInputs) -> tuple[Array, Array] | None:
    """The `halves` of real features, in float64."""
    found = halves(evaluation.real_features, evaluation.more_features)
    return None if found is None else (found[0].astype("float64"), found[1].astype("float64"))
