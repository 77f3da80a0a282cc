"""Precision, recall, density and coverage: balls around the features of each side.

The ball of an image reaches to its k-th nearest neighbour on its own side. Precision is the share
of generated images within a ball of a real one, recall the share of real images within a ball of a
generated one (Kynkäänniemi et al. 2019, eq. 1 and 2; k = 3). Density counts the real balls that a
generated image is in, over k, and coverage is the share of real balls with a generated image inside
(Naeem et al. 2020, eq. 2 and 3; k = 5). All four come from the same distances, hence one file.

They depend on n: compare only at equal n. For equal distributions and large n, density is 1 and
coverage 1 - 2^-k; precision and recall have no such value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics.inputs import MetricInputs, both
from diffuse_cli.metrics.nearest_neighbors import blocks, center_features, neighbors, squared
from diffuse_cli.metrics.presentation import (
    Facts,
    MetricNumber,
    Remark,
    Values,
    lost,
    measured,
    with_error,
)
from diffuse_cli.metrics.sample_statistics import share_difference_error

NEEDS = ("features",)

K_PRECISION, K_DENSITY = 3, 5
"""k, as the two papers choose it."""


def no_recall(values: Values) -> str:
    """Why plausibility is not quoted: near-identical images may all lie among real ones."""
    if "recall" not in values:
        return ""
    recall = measured(values, "recall")
    return "not quoted, as recall is 0" if recall.value <= recall.error else ""


SAYS = {
    "precision": "Share of the generated images that lie among the real ones: plausible images.",
    "recall": "Share of the real images that lie among the generated ones: variety.",
    "density": "As precision, but counts how many real images are around each generated one.",
    "coverage": "Share of the real images that have a generated one close by: variety.",
}


def _number(name: str, direction: str, ideal: float | None = None, **more: Any) -> MetricNumber:
    return MetricNumber(name, name, SAYS[name], direction, ideal, "variety", axis="share", **more)


NUMBERS = (
    _number("precision", "higher", by_class=True, unquoted=no_recall),
    _number("recall", "higher", by_class=True),
    _number("density", "reference", 1.0, unquoted=no_recall),
    _number("coverage", "higher", 1 - 2**-K_DENSITY),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Which of the two is missing; says nothing if the images are unlike real ones."""
    if "precision" not in facts or "recall" not in facts or lost(facts.values):
        return
    precision, recall = facts["precision"], facts["recall"]
    words = f"{recall.value:.0%} of the real images lie among the generated ones"
    if no_recall(facts.values):
        words += ": hardly any variety, so that the share of plausible images says nothing"
    else:
        words = (
            f"{precision.value:.0%} of the generated images lie among the real ones, and {words}"
        )
        if precision.above(recall):
            words += ": what is drawn is more plausible than it is varied"
        elif recall.above(precision):
            words += ": there is variety, at the cost of implausible images"
    yield Remark("plausibility and variety", "finding", words)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """`precision`, `recall`, `density`, `coverage`, each with its standard error.

    A number is left out where a side has no more than k images.
    """
    result: dict[str, float] = {}
    for name, own in _counted(evaluation).items():
        result |= with_error(name, own.value(), own.error())
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Those of all four, by what each image counts for in both."""
    one, other = _counted(a), _counted(b)
    return {name: other[name].error_less(one[name]) for name in one}  # type: ignore[arg-type]


def _counted(evaluation: MetricInputs) -> dict[str, Share | Density]:
    return counted(*both(evaluation, "precision and recall"))


def counted(real: Array, fake: Array) -> dict[str, Share | Density]:
    """The four numbers of two arrays of features, where there are neighbours enough."""
    balls, points = center_features(real, fake)
    precision = Inside(balls, K_PRECISION, len(points))
    recall = Inside(points, K_PRECISION, len(balls))
    density = Inside(balls, K_DENSITY, len(points))
    for i in blocks(len(balls)):
        for j in blocks(len(points)):
            found = squared(balls[i], points[j])
            precision.add(found, i, j)
            density.add(found, i, j)
            recall.add(found.T, j, i)
    result: dict[str, Share | Density] = {}
    if precision.usable:
        result["precision"] = Share(precision.by_point, precision.only_ball, len(balls))
    if recall.usable:
        result["recall"] = Share(recall.by_point, recall.only_ball, len(points))
    if density.usable:
        result["density"] = Density.of(density)
        result["coverage"] = Share(density.by_ball, density.only_point, len(points))
    return result


def recall(real: Array, fake: Array) -> Share | None:
    """The recall of two arrays of features alone, where there are neighbours enough: distances
    among the real images, which may be many, are not needed."""
    balls, points = center_features(real, fake)
    found = Inside(points, K_PRECISION, len(balls))
    for i in blocks(len(points)):
        for j in blocks(len(balls)):
            found.add(squared(points[i], balls[j]), i, j)
    return Share(found.by_point, found.only_ball, len(points)) if found.usable else None


class Inside:
    """Which of m points are in which of the balls around the rows of x (n, d), counted.

    Attributes:
        usable: whether there are neighbours enough.
        near: the places of the k nearest rows of each row (n, k).
        by_ball, by_point: points in each ball (n,), balls around each point (m,).
        only_point, only_ball: the place of the point or ball where there is only one.
    """

    def __init__(self, x: torch.Tensor, k: int, m: int) -> None:
        self.usable = len(x) > k
        self.radii, self.near = x.new_zeros(0), torch.zeros(0, dtype=torch.int64)
        if self.usable:
            distances, self.near = neighbors(x, k)
            self.radii = distances[:, -1:]
        self.by_ball, self.by_point = x.new_zeros(len(x)), x.new_zeros(m)
        self.only_point, self.only_ball = x.new_zeros(len(x)), x.new_zeros(m)

    def add(self, found: torch.Tensor, i: slice, j: slice) -> None:
        """Count a block of squared distances, balls i to points j."""
        if self.usable:
            inside = (found <= self.radii[i]).double()
            self.by_ball[i] += inside.sum(1)
            self.by_point[j] += inside.sum(0)
            # A sum of places is the place where there is one.
            self.only_point[i] += inside @ torch.arange(j.start, j.stop, dtype=torch.float64)
            self.only_ball[j] += torch.arange(i.start, i.stop, dtype=torch.float64) @ inside


@dataclass(frozen=True)
class Share:
    """The share of images that anything of the other side reaches.

    Attributes:
        counts: what reaches each image, (N,).
        only: the place of the one that does, where there is one.
        others: images on the other side, M.
    """

    counts: torch.Tensor
    only: torch.Tensor
    others: int

    @property
    def reached(self) -> torch.Tensor:
        """1 for each image that is reached, else 0."""
        return (self.counts > 0).double()

    def lost(self) -> torch.Tensor:
        """How many images each one of the other side alone reaches, (M,)."""
        alone = self.only[self.counts == 1].long()
        return torch.bincount(alone, minlength=self.others).double()

    def value(self) -> float:
        """The share."""
        return float(self.reached.mean())

    def error(self) -> float:
        """The standard error over draws of both sides.

        The images counted give a binomial error. An image of the other side matters to those that
        it alone reaches: leaving it out would lose them, and the squares of such losses are the
        jackknife's variance (Efron & Stein 1981), see `_spread`. That balls nearby would grow is
        neglected.
        """
        n = len(self.counts)
        adjusted = (self.value() * n + 1) / (n + 2)  # 0 or 1 is not known without error either
        alone = (self.counts == 1).double()
        return math.sqrt(adjusted * (1 - adjusted) / n + _spread(self.lost(), alone, alone))

    def error_less(self, one: Share) -> float:
        """That of this share less another, where the images of both correspond."""
        binomial = share_difference_error(one.reached.numpy(), self.reached.numpy())
        mine, theirs = self.counts == 1, one.counts == 1
        same = mine & theirs & (self.only == one.only)
        squares = mine.double() + theirs.double() - 2 * same.double()
        other = _spread(self.lost() - one.lost(), squares, mine.double() - theirs.double())
        return math.hypot(binomial, math.sqrt(other))


def _spread(lost: torch.Tensor, squares: torch.Tensor, sums: torch.Tensor) -> float:
    """Return the variance of a share by the images of the other side.

    The sum of the squares of what each of them is worth, less their mean, of products of two
    different images counted: an image with itself would count the binomial error once more.

    Args:
        lost: what each of the other side is worth, in images (M,).
        squares, sums: of what each image counted adds to `lost`, (N,).
    """
    n = len(squares)
    pairs = lost.square().sum() - squares.sum()
    mean = (lost.sum().square() - sums.square().sum()) / len(lost)
    return max(float(pairs - mean), 0.0) / (n * (n - 1))


@dataclass(frozen=True)
class Density:
    """Balls around a point over k.

    Attributes:
        points: those around each point, (M,).
        balls: how much each image that a ball is around is worth, (N,): the points in its ball,
            less what the balls of others would grow without it. A ball that lost one of its k
            neighbours would gain a k-th of its points.
    """

    points: torch.Tensor
    balls: torch.Tensor

    @classmethod
    def of(cls, inside: Inside) -> Density:
        """From the counts."""
        n, m = len(inside.by_ball), len(inside.by_point)
        grown = (inside.by_ball / K_DENSITY).repeat_interleave(K_DENSITY)
        worth = inside.by_ball.index_add(0, inside.near.flatten(), grown, alpha=-1)
        return cls(inside.by_point / K_DENSITY, worth * n / (m * K_DENSITY))

    def value(self) -> float:
        """The density."""
        return float(self.points.mean())

    def error(self) -> float:
        """The standard error of a mean over two samples."""
        return math.sqrt(sum(float(own.var()) / len(own) for own in (self.points, self.balls)))

    def error_less(self, one: Density) -> float:
        """That of this density less another, where the images of both correspond."""
        return Density(self.points - one.points, self.balls - one.balls).error()
