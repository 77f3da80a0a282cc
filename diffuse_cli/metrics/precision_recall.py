"""Precision, recall, density and coverage: balls around the features of each side.

The ball of an image reaches to its k-th nearest neighbor on its own side. Precision is the
fraction of generated images in the ball of a real image, and recall the fraction of real images in
the ball of a generated image (Kynkäänniemi et al. 2019, eq. 1 and 2, k = 3). Density is the number
of real balls that contain a generated image, divided by k. Coverage is the fraction of real balls
that contain a generated image (Naeem et al. 2020, eq. 2 and 3, k = 5). All four use the same
distances, so they share a file.

They depend on the numbers of images, so compare them only at equal numbers. For equal distributions
and many images, density is 1, and coverage is `expected_coverage`. Precision and recall have no
fixed value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
    Values,
    estimates,
    presentation,
    read_measurement,
)
from diffuse_cli.metrics.nearest_neighbors import blocks, merge, squared_distances

NEEDS = ("features",)

K_PRECISION, K_DENSITY = 3, 5
"""The k of the two papers."""


def zero_recall_reason(values: Values) -> str:
    """Return the reason not to show precision if recall is 0, else an empty string.

    Nearly identical images can all be plausible.
    """
    if "recall" not in values:
        return ""
    recall = read_measurement(values, "recall")
    return "not shown, because recall is 0" if recall.value <= recall.error else ""


SAYS = {
    "precision": "Fraction of generated images that are among the real images: plausibility.",
    "recall": "Fraction of real images that are among the generated images: variety.",
    "density": "Like precision, but counts the real images around each generated image.",
    "coverage": "Fraction of real images with a generated image close to them: variety.",
}


def _number(
    key: str, direction: str, ideal: float | str | None = None, **more: Any
) -> MetricNumber:
    return MetricNumber(key, key, SAYS[key], direction, ideal, "variety", axis="fraction", **more)


NUMBERS = (
    _number("precision", "higher", by_class=True, unquoted=zero_recall_reason),
    _number("recall", "higher", by_class=True),
    _number("density", "reference", 1.0, unquoted=zero_recall_reason, tolerance=0.5),
    _number("coverage", "higher", "coverage_expected", tolerance=0.2),
)

BESIDE = ("coverage_expected",)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Compare plausibility and variety, unless images do not look like real images."""
    measured = "precision" in facts and "recall" in facts
    if not measured or presentation.fails_baselines(facts.values):
        return
    precision, recall = facts["precision"], facts["recall"]
    words = f"{recall.value:.0%} of the real images are among the generated images"
    if zero_recall_reason(facts.values):
        words += ". There is hardly any variety, so the rate of plausible images has no meaning"
    else:
        words = (
            f"{precision.value:.0%} of the generated images are among the real images, and {words}"
        )
        if precision.is_above(recall):
            words += ". The generated images are plausible, but lack variety"
        elif recall.is_above(precision):
            words += ". The generated images have variety, but some are not plausible"
    yield Remark("plausibility and variety", "finding", words)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `precision`, `recall`, `density` and `coverage`, with standard errors.

    A value is left out if a side does not have more than k images.
    """
    result: dict[str, float] = {}
    for name, measure in _measure_both(evaluation).items():
        result |= Measurement(measure.value(), measure.error()).to_entries(name)
    if "coverage" in result:
        counts = len(evaluation.real_features), len(evaluation.fake_features)
        result["coverage_expected"] = expected_coverage(*counts)
    return result


def expected_coverage(real: int, generated: int) -> float:
    """Return the mean coverage of equal distributions (Naeem et al. 2020): a ball is empty
    if the nearest `K_DENSITY` of the other images are all real."""
    return 1 - math.prod((real - j) / (real + generated - j) for j in range(1, K_DENSITY + 1))


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of all four, from the contribution of each image to both."""
    of_a, of_b = _measure_both(a), _measure_both(b)
    return {name: of_b[name].difference_error(of_a[name]) for name in of_a}  # type: ignore[arg-type]


def _measure_both(evaluation: MetricInputs) -> dict[str, Fraction | Density]:
    return measure_fractions(*estimates.read_features(evaluation))


def measure_fractions(real: Array, fake: Array) -> dict[str, Fraction | Density]:
    """Return the four metrics of two arrays of features, if they have enough neighbors."""
    balls, points = center_features(real, fake)
    precision = BallCounts(balls, K_PRECISION, len(points))
    recall = BallCounts(points, K_PRECISION, len(balls))
    density = BallCounts(balls, K_DENSITY, len(points))
    for i in blocks(len(balls)):
        for j in blocks(len(points)):
            distances = squared_distances(balls[i], points[j])
            precision.add(distances, i, j)
            density.add(distances, i, j)
            recall.add(distances.T, j, i)
    result: dict[str, Fraction | Density] = {}
    if precision.usable:
        result["precision"] = Fraction(precision.by_point, precision.only_ball, len(balls))
    if recall.usable:
        result["recall"] = Fraction(recall.by_point, recall.only_ball, len(points))
    if density.usable:
        result["density"] = Density.of(density)
        result["coverage"] = Fraction(density.by_ball, density.only_point, len(points))
    return result


def measure_recall(real: Array, fake: Array) -> Fraction | None:
    """Return only the recall of two arrays of features, if they have enough neighbors.

    It does not need distances between real images, of which there can be many.
    """
    balls, points = center_features(real, fake)
    recall = BallCounts(points, K_PRECISION, len(balls))
    for i in blocks(len(points)):
        for j in blocks(len(balls)):
            recall.add(squared_distances(points[i], balls[j]), i, j)
    return Fraction(recall.by_point, recall.only_ball, len(points)) if recall.usable else None


def center_features(*arrays: Array) -> list[torch.Tensor]:
    """Subtract the mean of the first array (N, d) from all, float64, to reduce rounding errors."""
    mean = arrays[0].mean(0, dtype=np.float64)
    return [torch.from_numpy(np.asarray(a, np.float64) - mean) for a in arrays]


def neighbors(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared distances of each row (n, d) to its k nearest rows, and their indices.

    Both are (n, k), for n > k.
    """
    distances = x.new_empty(len(x), k)
    places = torch.empty(len(x), k, dtype=torch.int64)
    for i in blocks(len(x)):
        nearest = None
        for j in blocks(len(x)):
            squares = squared_distances(x[i], x[j])
            if i == j:
                squares.fill_diagonal_(torch.inf)
            nearest = merge(nearest, squares, j.start, k)
        assert nearest is not None
        distances[i], places[i] = nearest
    return distances, places


class BallCounts:
    """Counts of m points in the balls around the rows of x (n, d).

    Attributes:
        usable: whether there are enough neighbors.
        near: the indices of the k nearest rows of each row, (n, k).
        by_ball, by_point: the numbers of points in each ball (n,), and of balls around each point
            (m,).
        only_point, only_ball: the index of the point in a ball, or of the ball around a point, if
            there is exactly one.
    """

    def __init__(self, x: torch.Tensor, k: int, m: int) -> None:
        self.usable = len(x) > k
        self.radii, self.near = x.new_zeros(0), torch.zeros(0, dtype=torch.int64)
        if self.usable:
            distances, self.near = neighbors(x, k)
            self.radii = distances[:, -1:]
        self.by_ball, self.by_point = x.new_zeros(len(x)), x.new_zeros(m)
        self.only_point, self.only_ball = x.new_zeros(len(x)), x.new_zeros(m)

    def add(self, distances: torch.Tensor, i: slice, j: slice) -> None:
        """Count a block of squared distances, balls i to points j."""
        if self.usable:
            inside = (distances <= self.radii[i]).double()
            self.by_ball[i] += inside.sum(1)
            self.by_point[j] += inside.sum(0)
            # With one point or ball, the sum of indices is its index.
            self.only_point[i] += inside @ torch.arange(j.start, j.stop, dtype=torch.float64)
            self.only_ball[j] += torch.arange(i.start, i.stop, dtype=torch.float64) @ inside


@dataclass(frozen=True)
class Fraction:
    """Fraction of images that are reached by an image of the other side.

    Attributes:
        counts: the number of images of the other side that reach each image, (N,).
        only: the index of the image that reaches it, if there is exactly one.
        other_count: the number of images on the other side, M.
    """

    counts: torch.Tensor
    only: torch.Tensor
    other_count: int

    @property
    def hits(self) -> torch.Tensor:
        """1 for each image that is reached, else 0."""
        return (self.counts > 0).double()

    def count_losses(self) -> torch.Tensor:
        """Return the number of images that only one image of the other side reaches, (M,)."""
        alone = self.only[self.counts == 1].long()
        return torch.bincount(alone, minlength=self.other_count).double()

    def value(self) -> float:
        """Return the fraction."""
        return float(self.hits.mean())

    def error(self) -> float:
        """Return the standard error for random samples on both sides.

        The counted images give a binomial error. An image of the other side matters for the images
        that only it reaches: without it they are lost, and the squares of these losses are the
        jackknife's variance (Efron & Stein 1981), see `_jackknife_variance`. The growth of nearby
        balls is neglected.
        """
        binomial = estimates.fraction_variance(self.value(), len(self.counts))
        alone = (self.counts == 1).double()
        variance = _jackknife_variance(self.count_losses(), alone, alone)
        return math.sqrt(binomial + variance)

    def difference_error(self, one: Fraction) -> float:
        """Return the standard error of this fraction minus another of corresponding images."""
        binomial = estimates.fraction_difference_error(one.hits.numpy(), self.hits.numpy())
        alone, one_alone = self.counts == 1, one.counts == 1
        same = alone & one_alone & (self.only == one.only)
        squares = alone.double() + one_alone.double() - 2 * same.double()
        variance = _jackknife_variance(
            self.count_losses() - one.count_losses(), squares, alone.double() - one_alone.double()
        )
        return math.hypot(binomial, math.sqrt(variance))


def _jackknife_variance(lost: torch.Tensor, squares: torch.Tensor, sums: torch.Tensor) -> float:
    """Return the variance of a fraction by the images of the other side.

    It is the sum of the squares of their losses minus the mean, limited to products of two
    different counted images. Products of an image with itself would count the binomial error again.

    Args:
        lost: the loss of each image of the other side, in images (M,).
        squares, sums: the sums of squares and values that each counted image adds to
        `count_losses`, (N,).
    """
    n = len(squares)
    pairs = lost.square().sum() - squares.sum()
    mean = (lost.sum().square() - sums.square().sum()) / len(lost)
    return max(float(pairs - mean), 0.0) / (n * (n - 1))


@dataclass(frozen=True)
class Density:
    """Number of balls around a point, divided by k.

    Attributes:
        points: the number of balls around each point, divided by k, (M,).
        balls: the contribution of the center of each ball, (N,): the points in its ball, minus the
            growth of other balls without it. A ball without one of its k neighbors would gain 1/k
            of its points.
    """

    points: torch.Tensor
    balls: torch.Tensor

    @classmethod
    def of(cls, inside: BallCounts) -> Density:
        """Make a density from counts."""
        n, m = len(inside.by_ball), len(inside.by_point)
        grown = (inside.by_ball / K_DENSITY).repeat_interleave(K_DENSITY)
        worth = inside.by_ball.index_add(0, inside.near.flatten(), grown, alpha=-1)
        return cls(inside.by_point / K_DENSITY, worth * n / (m * K_DENSITY))

    def value(self) -> float:
        """Return the density."""
        return float(self.points.mean())

    def error(self) -> float:
        """Return the standard error of a mean over two samples."""
        return math.sqrt(sum(float(x.var()) / len(x) for x in (self.points, self.balls)))

    def difference_error(self, one: Density) -> float:
        """Return the standard error of this density minus another of corresponding images."""
        return Density(self.points - one.points, self.balls - one.balls).error()
