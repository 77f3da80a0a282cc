"""Kernel distance of the features: MMD^2 under a cubic kernel, with its standard error.

The kernel is that of Binkowski et al. 2018 ("Demystifying MMD GANs"), the estimate the unbiased one
of Gretton et al. 2012 (eq. 3), over all samples at once, like torch-fidelity's with one subset of
all images. The subsets of other programs need a large n, and their spread is not the error of the
estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics.inputs import MetricInputs, both, floor
from diffuse_cli.metrics.nearest_neighbors import blocks
from diffuse_cli.metrics.presentation import (
    BASELINES,
    Facts,
    MetricNumber,
    Remark,
    listed,
    standing,
    with_error,
)

NEEDS = ("features",)

NUMBERS = (
    MetricNumber(
        "kid",
        "KID",
        "Kernel inception distance: how different the two clouds are. It does not depend on how "
        "many images were measured.",
        "lower",
        "kid_floor",
        "likeness",
        axis="KID",
        by_class=True,
    ),
)

BESIDE = ("kid_floor",)

NAME = "the kernel distance"


def remarks(facts: Facts) -> Iterator[Remark]:
    """How the generated images compare with real ones, blurred ones and noise."""
    if "kid" not in facts:
        return
    kid = facts["kid"]
    farther, level, nearer = (
        listed([f"{BASELINES[name]} ({facts[f'kid_of_{name}']})" for name in names])
        for names in standing(facts.values)
    )
    if farther or level:
        places = (("worse than ", farther), ("not clearly better than ", level))
        where = ", and ".join(word + names for word, names in places if names)
        yield Remark(
            "likeness",
            "poor",
            f"by their distance from real images (KID {kid}) the generated images are {where}: "
            "train longer, or look for what went wrong",
        )
        return
    words = f"the generated images' distance from real ones (KID) is {kid}"
    if nearer:
        words += f", nearer than {nearer}"
    if "kid_floor" in facts:
        words += f"; that of real images from other real ones is {facts['kid_floor']}. "
        known = "kid_standard_error" in facts  # needs four images
        if known and kid.above(facts["kid_floor"]):
            words += "As a set, the two differ measurably"
        else:
            n = min(facts.real, facts.generated)
            words += (
                f"{n:,} images on each side do not tell them apart; more would find smaller "
                "differences"
            )
    yield Remark("likeness", "finding", words)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """`kid`, and `kid_floor`, that of real images against other real ones.

    Each has a standard error if there are at least 4 images on each side.
    """
    return of_features(evaluation, NAME, "kid")


def of_features(evaluation: MetricInputs, name: str, key: str) -> dict[str, float]:
    """Return the kernel distance called `name` and its floor, by the key and `key_floor`."""
    result = estimate(*both(evaluation, name), key)
    if halves := floor(evaluation):
        result |= estimate(*halves, f"{key}_floor")
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """That of `kid`, where there are at least 4 images on each side.

    The two k-th generated images are one sample, a pair. The difference is then an estimate like
    `mmd` itself, whose kernel is a difference of kernels; within the real images it is zero.
    """
    (real, of_a), (_, of_b) = both(a, NAME), both(b, NAME)
    (n, d), pairs = real.shape, np.concatenate([of_a, of_b], 1)
    if min(n, len(pairs)) < 4:
        return {}
    xx = Sums(np.zeros(n), np.zeros(n), 0.0)
    yy = within(pairs, lambda y, z: kernel(y[:, :d], z[:, :d]) - kernel(y[:, d:], z[:, d:]))
    xy = between(real, pairs, lambda x, y: kernel(x, y[:, :d]) - kernel(x, y[:, d:]))
    return {"kid": math.sqrt(variance(xx, yy, xy))}


def estimate(x: Array, y: Array, name: str = "kid", xx: Sums | None = None) -> dict[str, float]:
    """The distance of float64 features (N, d) and (M, d), and its error if both are 4 or more.

    Args:
        xx: `within(x)`, if known.
    """
    xx, yy, xy = xx or within(x), within(y), between(x, y)
    value = mmd(xx, yy, xy)
    if min(len(x), len(y)) < 4:
        return {name: value}
    return with_error(name, value, math.sqrt(variance(xx, yy, xy)))


def kernel(x: Array, y: Array) -> Array:
    """(x . y / d + 1)^3 for every row of x (N, d) with every row of y (M, d): (N, M)."""
    base: Array = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base


Kernel = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Sums:
    """Sums over a kernel matrix: of its rows, its columns and its squared entries."""

    rows: Array
    columns: Array
    squares: float


def between(x: Array, y: Array, of: Kernel = kernel) -> Sums:
    """Sums over all pairs of a row of x (N, d) and a row of y (M, d), float64."""
    rows, columns, squares = np.zeros(len(x)), np.zeros(len(y)), 0.0
    for i in blocks(len(x)):
        for j in blocks(len(y)):
            k = of(x[i], y[j])
            rows[i] += k.sum(1)
            columns[j] += k.sum(0)
            squares += float(np.vdot(k, k))
    return Sums(rows, columns, squares)


def within(x: Array, of: Kernel = kernel) -> Sums:
    """Sums over all pairs of two different rows of x (N, d), float64; each pair counts twice."""
    rows, squares = np.zeros(len(x)), 0.0
    for i in blocks(len(x)):
        k = of(x[i], x[i])
        np.fill_diagonal(k, 0)
        rows[i] += k.sum(1)
        squares += float(np.vdot(k, k))
        for j in blocks(len(x)):
            if j.start > i.start:  # the other half is its transpose
                k = of(x[i], x[j])
                rows[i] += k.sum(1)
                rows[j] += k.sum(0)
                squares += 2 * float(np.vdot(k, k))
    return Sums(rows, rows, squares)


def mmd(xx: Sums, yy: Sums, xy: Sums) -> float:
    """The unbiased estimate of MMD^2; it may be negative."""
    n, m = len(xy.rows), len(xy.columns)
    alike = xx.rows.sum() / (n * (n - 1)) + yy.rows.sum() / (m * (m - 1))
    return float(alike - 2 * xy.rows.sum() / (n * m))


def variance(xx: Sums, yy: Sums, xy: Sums) -> float:
    """An estimate of the variance of `mmd` over draws of both samples, n and m at least 4.

    Hoeffding's decomposition splits the variance in a first order, of single samples, and a second,
    of pairs. The leave-one-out jackknife, which needs row sums only, counts the second more than
    twice (Efron & Stein 1981); the known excess is subtracted, which makes first + second unbiased
    (as in Sutherland & Deka 2019). For equal distributions the first is zero and its estimate
    scatters around that, so it is bounded below by 0: the second is the variance there. Near
    equality the bound makes the error a little too large, never too small.
    """
    n, m = len(xy.rows), len(xy.columns)
    pairs_x, pairs_y, pairs_xy = _pairs_within(xx), _pairs_within(yy), _pairs_between(xy)
    left_out_x = xx.rows / (n - 2) - xy.rows / m
    left_out_y = yy.rows / (m - 2) - xy.columns / n
    jackknife = 4 * (left_out_x.var(ddof=1) / n + left_out_y.var(ddof=1) / m)
    counted = 4 * (pairs_x / (n * (n - 2)) + pairs_y / (m * (m - 2)) + 2 * pairs_xy / (n * m))
    second = 2 * pairs_x / (n * (n - 1)) + 2 * pairs_y / (m * (m - 1)) + 4 * pairs_xy / (n * m)
    return float(max(jackknife - counted, 0.0) + second)


def _pairs_within(k: Sums) -> float:
    """The variance of the kernel between two samples that neither explains alone.

    Unbiased, by the U-centring of Székely & Rizzo 2014 ("Partial distance correlation").
    """
    n = len(k.rows)
    total = float(k.rows.sum())
    left = k.squares - 2 * np.square(k.rows).sum() / (n - 2) + total**2 / ((n - 1) * (n - 2))
    return max(float(left), 0.0) / (n * (n - 3))


def _pairs_between(k: Sums) -> float:
    """The same between a sample of x and one of y: the residual variance of a two-way table."""
    n, m = len(k.rows), len(k.columns)
    left = k.squares - np.square(k.rows).sum() / m - np.square(k.columns).sum() / n
    left += float(k.rows.sum()) ** 2 / (n * m)
    return max(float(left), 0.0) / ((n - 1) * (m - 1))
