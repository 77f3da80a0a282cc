"""Inputs of metrics: features, bits, distances and statistics of real and generated samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffuse_cli.core import Space
from diffuse_cli.media import Array
from diffuse_cli.metrics.channel_distributions import Marginals
from diffuse_cli.metrics.sample_statistics import split_real
from diffuse_cli.system import UsageError


@dataclass(frozen=True)
class NearestDistances:
    """Distances to the nearest training image in one space.

    Attributes:
        samples: the distances of generated images, (N,).
        references: the distances of real images that are not copies, (M,).
        places: the index of the nearest training image of each generated image, and then of each
            reference, (N + M,).
    """

    samples: Array
    references: Array
    places: Array

    def select(self, samples: Array, references: Array) -> NearestDistances:
        """Return the distances of some images, by masks (N,) and (M,)."""
        places = self.places[np.concatenate([samples, references])]
        return NearestDistances(self.samples[samples], self.references[references], places)


@dataclass(frozen=True)
class PairedValues:
    """Values of paired metrics for each real image.

    Attributes:
        values: the values (M,) by key.
        rows: the indices of these images among the real images.
        first: the first samples (K, C, *size), by their kind.
    """

    values: Mapping[str, Array]
    rows: Array
    first: Mapping[str, Array] = field(default_factory=dict)

    def __getitem__(self, chosen: Array) -> PairedValues:
        """Return the values of some real images, by a mask of all real images."""
        mask = chosen[self.rows]
        return PairedValues({k: value[mask] for k, value in self.values.items()}, self.rows[mask])


@dataclass(frozen=True)
class Shells:
    """Shells of the frequencies of a real Fourier transform.

    Attributes:
        frequencies: the mean frequency of each shell, ascending, (S,).
        counts: the number of frequencies in each shell, without frequency 0. Their sum is the
            number of points minus one.
        order, starts: the indices of the flattened transform by shell, and the start of each shell.
        weights: the number of frequencies for each of these indices: 1, or 2 with the mirrored
            frequency.
    """

    frequencies: Array
    counts: Array
    order: Array
    starts: Array
    weights: Array


@dataclass(frozen=True)
class Spectra:
    """Power of each sample in each shell, (N, S), for real and generated samples.

    It is the mean over channels of the periodogram |X|^2 / points of samples minus their means,
    divided by the variance of real samples about their means. So it is 1 at every frequency for
    white noise of that variance. Its sum with the weights `shells.counts` is the number of points
    times the variance (Parseval's theorem).
    """

    shells: Shells
    real: Array
    fake: Array
    more: Array

    def of(self, real: Array, fake: Array, more: Array) -> Spectra:
        """Return the spectra of some of the samples, by masks."""
        return Spectra(self.shells, self.real[real], self.fake[fake], self.more[more])


def _no_rows(columns: int = 0) -> Any:
    return field(default_factory=lambda: np.zeros((0, columns)))


@dataclass(kw_only=True)
class MetricInputs:
    """Parts of an evaluation. A metric reads the parts in its `NEEDS`.

    Attributes:
        space: the space of the samples.
        real_features, fake_features, more_features: the `features` or `random_features` of real,
            generated and further real images, float32 (N, d), (M, d) and (K, d). K can be 0.
        baseline_features: the features of baseline images, by name.
        bits, train_bits: the bits per dimension of held-out and of training images, (N, 3) and
            (M, 3), as L_T, L_1 + ... + L_T-1, L_0.
        ode_bits: the bits per dimension of held-out images by the probability-flow equation, and
            the estimated errors of the solver, (N, 2).
        nearest: the distances to training images, by the name of the space.
        paired_values: the values of paired metrics, for models with a conditioning image.
        marginals: the distributions of values of real and generated samples, by channel.
        spectra: the power of real and generated samples by frequency.
    """

    space: Space
    real_features: Array = _no_rows()
    fake_features: Array = _no_rows()
    more_features: Array = _no_rows()
    baseline_features: dict[str, Array] = field(default_factory=dict)
    bits: Array = _no_rows(3)
    train_bits: Array = _no_rows(3)
    ode_bits: Array = _no_rows(2)
    nearest: dict[str, NearestDistances] = field(default_factory=dict)
    paired_values: PairedValues = field(
        default_factory=lambda: PairedValues({}, np.zeros(0, np.int64))
    )
    marginals: Marginals = field(init=False)
    spectra: Spectra = field(init=False)

    @property
    def floats(self) -> bool:
        """Whether samples are floats, for which the variational bound is on a density."""
        return self.space.levels is None


def require_features(evaluation: MetricInputs, metric: str) -> tuple[Array, Array]:
    """Return real and generated features in float64.

    Raises:
        UsageError: fewer than two images on a side.
    """
    real, fake = evaluation.real_features, evaluation.fake_features
    if min(len(real), len(fake)) < 2:
        text = f"{metric} needs 2 real and 2 generated images, not {len(real)} and {len(fake)}"
        raise UsageError(text, "Pass a larger -n, or use a folder with more images")
    return real.astype("float64"), fake.astype("float64")


def split_real_features(evaluation: MetricInputs) -> tuple[Array, Array] | None:
    """Return the `split_real` of real features, in float64."""
    generated = len(evaluation.fake_features)
    halves = split_real(evaluation.real_features, evaluation.more_features, generated)
    return None if halves is None else (halves[0].astype("float64"), halves[1].astype("float64"))
