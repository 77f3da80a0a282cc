"""Kernel distance of the features: MMD^2 under a cubic kernel, with its standard error.

The kernel is from Binkowski et al. 2018 ("Demystifying MMD GANs"), and the unbiased estimate from
Gretton et al. 2012 (eq. 3). It uses all samples at once, like torch-fidelity with one subset of all
images. The subsets of other programs need a large n, and their spread is not the standard error of
the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
    estimates,
    presentation,
)
from diffuse_cli.metrics.nearest_neighbors import blocks

NEEDS = ("features",)

NUMBERS = (
    MetricNumber(
        "kid",
        "KID",
        "Kernel inception distance between the two clouds. Its mean does not depend on the number "
        "of images.",
        "lower",
        "kid_floor",
        "likeness",
        axis="KID",
        by_class=True,
    ),
)

BESIDE = ("kid_floor",)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Compare the generated images' KID with real images and the baselines."""
    if "kid" not in facts:
        return
    kid = facts["kid"]
    farther, level, nearer = (
        presentation.join_names(
            [f"{presentation.BASELINES[name]} ({facts[f'kid_of_{name}']})" for name in names]
        )
        for names in presentation.rank_baselines(facts.values)
    )
    if farther or level:
        places = (("worse than ", farther), ("not clearly better than ", level))
        where = ", and ".join(word + names for word, names in places if names)
        look = "Train longer, or look" if facts.model else "Look"
        yield Remark(
            "likeness",
            "poor",
            f"with a KID of {kid}, the generated images are {where}. {look} for a mistake in the "
            "data or the settings",
        )
        return
    words = f"the KID between generated and real images is {kid}"
    if nearer:
        words += f", lower than for {nearer}"
    if "kid_floor" in facts:
        words += f". Between two sets of real images it is {facts['kid_floor']}. "
        has_error = "kid_standard_error" in facts  # needs four images
        if has_error and kid.is_above(facts["kid_floor"]):
            words += "So the generated images differ measurably"
        else:
            n = min(facts.real, facts.generated)
            words += (
                f"With {n:,} images on each side there is no measurable difference. More images "
                "would show smaller differences"
            )
    yield Remark("likeness", "finding", words)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `kid`, and `kid_floor`, the KID between two sets of real images.

    Each has a standard error if there are at least 4 images on each side.
    """
    return compute_with_floor(evaluation, "kid")


def compute_with_floor(evaluation: MetricInputs, key: str) -> dict[str, float]:
    """Return a kernel distance and its floor, as `key` and `key_floor`."""
    result = estimate_kid(*estimates.read_features(evaluation), key)
    if halves := estimates.split_real_features(evaluation):
        result |= estimate_kid(*halves, f"{key}_floor")
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard error of `kid`, if there are at least 4 images on each side.

    Generated images with the same index are one sample, a pair. The difference is then an estimate
    like `mmd`, whose kernel is a difference of kernels. Within the real images it is zero.
    """
    real, of_a = estimates.read_features(a)
    _, of_b = estimates.read_features(b)
    (n, d), pairs = real.shape, np.concatenate([of_a, of_b], 1)
    if min(n, len(pairs)) < 4:
        return {}
    xx = Sums(np.zeros(n), np.zeros(n), 0.0)
    yy = sum_within(pairs, lambda y, z: kernel(y[:, :d], z[:, :d]) - kernel(y[:, d:], z[:, d:]))
    xy = sum_between(real, pairs, lambda x, y: kernel(x, y[:, :d]) - kernel(x, y[:, d:]))
    return {"kid": math.sqrt(variance(xx, yy, xy))}


def estimate_kid(x: Array, y: Array, name: str = "kid", xx: Sums | None = None) -> dict[str, float]:
    """Return the kernel distance of float64 features (N, d) and (M, d).

    It has a standard error if N and M are at least 4.

    Args:
        xx: the result of `sum_within(x)`, if known.
    """
    xx, yy, xy = xx or sum_within(x), sum_within(y), sum_between(x, y)
    value = mmd(xx, yy, xy)
    if min(len(x), len(y)) < 4:
        return {name: value}
    return Measurement(value, math.sqrt(variance(xx, yy, xy))).to_entries(name)


def kernel(x: Array, y: Array) -> Array:
    """Return (x . y / d + 1)^3 for each row of x (N, d) and each row of y (M, d): (N, M)."""
    base: Array = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base


Kernel = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Sums:
    """Sums over a kernel matrix: of its rows, its columns and its squared elements."""

    rows: Array
    columns: Array
    squares: float


def sum_between(x: Array, y: Array, pair_kernel: Kernel = kernel) -> Sums:
    """Compute the sums over all pairs of a row of x (N, d) and a row of y (M, d), float64."""
    rows, columns, squares = np.zeros(len(x)), np.zeros(len(y)), 0.0
    for i in blocks(len(x)):
        for j in blocks(len(y)):
            k = pair_kernel(x[i], y[j])
            rows[i] += k.sum(1)
            columns[j] += k.sum(0)
            squares += float(np.vdot(k, k))
    return Sums(rows, columns, squares)


def sum_within(x: Array, pair_kernel: Kernel = kernel) -> Sums:
    """Compute the sums over all ordered pairs of two different rows of x (N, d), float64."""
    rows, squares = np.zeros(len(x)), 0.0
    for i in blocks(len(x)):
        k = pair_kernel(x[i], x[i])
        np.fill_diagonal(k, 0)
        rows[i] += k.sum(1)
        squares += float(np.vdot(k, k))
        for j in blocks(len(x)):
            if j.start > i.start:  # the other half is its transpose
                k = pair_kernel(x[i], x[j])
                rows[i] += k.sum(1)
                rows[j] += k.sum(0)
                squares += 2 * float(np.vdot(k, k))
    return Sums(rows, rows, squares)


def mmd(xx: Sums, yy: Sums, xy: Sums) -> float:
    """Return the unbiased estimate of MMD^2, which can be negative."""
    n, m = len(xy.rows), len(xy.columns)
    alike = xx.rows.sum() / (n * (n - 1)) + yy.rows.sum() / (m * (m - 1))
    return float(alike - 2 * xy.rows.sum() / (n * m))


def variance(xx: Sums, yy: Sums, xy: Sums) -> float:
    """Estimate the variance of `mmd` for random samples on both sides, with n and m at least 4.

    Hoeffding's decomposition splits the variance into a first order, from single samples, and a
    second order, from pairs. The leave-one-out jackknife needs only row sums, but counts the second
    order more than twice (Efron & Stein 1981). Subtracting the known excess makes the sum of both
    orders unbiased (as in Sutherland & Deka 2019). For equal distributions the first order is zero,
    and its estimate varies around zero, so it is clamped to at least 0. Near equality this makes
    the standard error a little too large, never too small.
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
    """Return the variance of the kernel that only the pair explains, not one of its two samples.

    It is unbiased, by the U-centering of Székely & Rizzo 2014 ("Partial distance correlation").
    """
    n = len(k.rows)
    total = float(k.rows.sum())
    residual = k.squares - 2 * np.square(k.rows).sum() / (n - 2) + total**2 / ((n - 1) * (n - 2))
    return max(float(residual), 0.0) / (n * (n - 3))


def _pairs_between(k: Sums) -> float:
    """Return `_pairs_within` for pairs of x and y: the residual variance of a two-way table."""
    n, m = len(k.rows), len(k.columns)
    residual = k.squares - np.square(k.rows).sum() / m - np.square(k.columns).sum() / n
    residual += float(k.rows.sum()) ** 2 / (n * m)
    return max(float(residual), 0.0) / ((n - 1) * (m - 1))
