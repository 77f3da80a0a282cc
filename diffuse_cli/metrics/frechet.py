"""Fréchet distance between Gaussians fitted to the features (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

It is called FID only with the Inception weights of 2015. For few samples it is mostly bias, which
falls as 1/n (Chong & Forsyth 2020). So compare it only at equal n, or compare `frechet_infinity`,
the value at 1/n = 0 of a line through the distances of all images, of halves and of quarters. Here
both sides are divided, which removes the bias of both. Chong & Forsyth divide only the generated
side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    SIGNIFICANT,
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
    estimates,
)
from diffuse_cli.metrics.estimates import SampledEstimate
from diffuse_cli.system.rng import permutation

NEEDS = ("features",)

_number = partial(MetricNumber, direction="lower", question="likeness", place=2)

NUMBERS = (
    _number(
        "frechet_distance",
        "Fréchet distance",
        "Distance between the means and covariances of the two clouds. It falls with the number of "
        "images, so compare it only at equal numbers.",
        ideal="frechet_floor",
        axis="Fréchet distance",
    ),
    _number(
        "frechet_infinity",
        "at infinite n",
        "Its value for infinitely many images, extrapolated by a line. The standard error covers "
        "sampling only. A remark warns you if a line does not fit.",
        ideal=0.0,
        part=True,
    ),
)

BESIDE = ("frechet_floor", "floor_images", "floor_further", "frechet_infinity_bend")


def remarks(facts: Facts) -> Iterator[Remark]:
    """Explain the floors, and warn if most of the distance is bias."""
    if "floor_images" in facts:
        n, m = (round(facts[key].value) for key in ("floor_images", "floor_further"))
        words = (
            f"for KID and the Fréchet distance, it is the distance between {n:,} and {m:,} real "
            "images"
        )
        if 1 / n + 1 / m > 1.1 * (1 / facts.real + 1 / facts.generated):
            words += ". With so few, the Fréchet distance is above that of a perfect model"
        yield Remark("reference", "note", words)
    count = min(facts.real, facts.generated)
    if "frechet_distance" in facts and count <= facts.dim:  # a covariance then has no full rank
        yield Remark(
            "Fréchet distance",
            "caution",
            f"{count:,} images are too few for {facts.dim:,} features, so most of the distance is "
            "bias. Compare it only at equal numbers of images, or compare KID",
        )
    if "frechet_infinity_bend" in facts:
        line, bend = facts["frechet_infinity"], facts["frechet_infinity_bend"].value
        if abs(bend) > SIGNIFICANT * line.error:
            yield Remark(
                "Fréchet distance at infinite n",
                "caution",
                f"a line gives {line}, but a parabola through the same points gives "
                f"{Measurement(line.value + bend)}. The value can be wrong by their difference",
            )


PARTS = (1, 2, 4)
"""Number of parts of the images, for each point of the line."""

SMALLEST = 4
"""Fewest images of a part."""


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `frechet_distance`, `frechet_floor` and `frechet_infinity`, with standard errors.

    The floor is the distance between `floor_images` and `floor_further` real images.
    `frechet_infinity` needs 16 images, and a parabola adds `frechet_infinity_bend` to it.
    Covariances are divided by n - 1, and exact for n below d too.
    """
    real, fake = estimates.read_features(evaluation)
    whole = estimate_frechet(real, fake)
    result = whole.to_entries("frechet_distance")
    if min(len(real), len(fake)) >= SMALLEST * max(PARTS):
        line, bend = extrapolate_distance(real, fake, whole)
        result |= line.to_entries("frechet_infinity")
        result["frechet_infinity_bend"] = bend
    if halves := estimates.split_real_features(evaluation):
        result |= estimate_frechet(*halves).to_entries("frechet_floor")
        result["floor_images"], result["floor_further"] = (float(len(half)) for half in halves)
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of both distances, from differences of influences."""
    real, of_a = estimates.read_features(a)
    _, of_b = estimates.read_features(b)
    distance_a, distance_b = estimate_frechet(real, of_a), estimate_frechet(real, of_b)
    result = {"frechet_distance": distance_b.subtract(distance_a).error()}
    if min(len(real), len(of_a)) >= SMALLEST * max(PARTS):
        line_a, bend_a = extrapolate_distance(real, of_a, distance_a)
        line_b, bend_b = extrapolate_distance(real, of_b, distance_b)
        result["frechet_infinity"] = math.hypot(line_b.subtract(line_a).error(), bend_b - bend_a)
    return result


def estimate_frechet(a: Array, b: Array) -> SampledEstimate:
    """Return the squared Fréchet distance of float64 features (N, d) and (M, d)."""
    centered_a, centered_b = a - a.mean(0), b - b.mean(0)
    (basis_a, root_a), (basis_b, root_b) = _factors(centered_a), _factors(centered_b)
    directions_a, shared, directions_b = torch.linalg.svd(root_a @ root_b.T, full_matrices=False)
    gap = a.mean(0) - b.mean(0)
    # S = R^T R on both sides, so S_a S_b has the non-zero eigenvalues of (R_a R_b^T)(R_a R_b^T)^T.
    # The trace of its root is a sum of singular values, without roots of ill-conditioned matrices.
    spread = root_a.square().sum() + root_b.square().sum() - 2 * shared.sum()
    return SampledEstimate(
        float(np.square(gap).sum() + spread.item()),
        _influence(centered_a, gap, basis_a, directions_a, shared),
        _influence(centered_b, -gap, basis_b, directions_b.T, shared),
    )


def extrapolate_distance(
    a: Array, b: Array, whole: SampledEstimate
) -> tuple[SampledEstimate, float]:
    """Return the distance at 1/n = 0 by a line, and the difference of a parabola from it.

    The standard error covers sampling, with the correlation of points from the same images. The
    difference is large if n is below the number of features.

    Args:
        whole: the fit of all images.
    """
    order_a, order_b = permutation(0, 0, len(a)), permutation(0, 1, len(b))
    divided = [_fit_parts(a[order_a], b[order_b], parts) for parts in PARTS[1:]]
    back_a, back_b = order_a.argsort(), order_b.argsort()
    levels = [whole, *(SampledEstimate(f.value, f.a[back_a], f.b[back_b]) for f in divided)]
    line, curve = _intercept(PARTS, 1), _intercept(PARTS, 2)
    values = np.array([level.value for level in levels])
    sampled = SampledEstimate(
        float(line @ values),
        sum(w * level.a for w, level in zip(line, levels, strict=True)),
        sum(w * level.b for w, level in zip(line, levels, strict=True)),
    )
    return sampled, float((curve - line) @ values)


def _fit_parts(a: Array, b: Array, parts: int) -> SampledEstimate:
    """Return the mean distance between corresponding parts of both sides."""
    pairs = zip(np.array_split(a, parts), np.array_split(b, parts), strict=True)
    fits = [estimate_frechet(*pair) for pair in pairs]
    return SampledEstimate(
        float(np.mean([f.value for f in fits])),
        np.concatenate([f.a for f in fits]),
        np.concatenate([f.b for f in fits]),
    )


def _intercept(x: tuple[int, ...], degree: int) -> Array:
    """Return the weights of y in the value at 0 of a polynomial that is fitted to points (x, y)."""
    powers = np.vander(np.array(x, np.float64), degree + 1, increasing=True)
    return np.asarray(np.linalg.pinv(powers)[0])


def _factors(centered: Array) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return Q and R with Q R = the centered rows (N, d) / sqrt(N - 1): R^T R is their covariance.

    If N is at most d, Q is the identity, returned as None.
    """
    n, d = centered.shape
    root = torch.from_numpy(centered) / math.sqrt(n - 1)
    if n <= d:
        return None, root
    basis, triangle = torch.linalg.qr(root)  # three times as fast as NumPy's
    return basis, triangle


def _influence(
    centered: Array,
    gap: Array,
    basis: torch.Tensor | None,
    directions: torch.Tensor,
    shared: torch.Tensor,
) -> Array:
    """Return 2 gap . x + (|x|^2 - x . T x) N / (N - 1) of each centered row x, less its mean, (N,).

    T = S_b^(1/2) (S_b^(1/2) S_a S_b^(1/2))^(-1/2) S_b^(1/2) is the derivative of 2 tr((S_a
    S_b)^(1/2)) by S_a, and the map that transports one Gaussian to the other. With
    x = sqrt(N - 1) q R and the singular values s of R_a R_b^T, x . T x is (N - 1) sum of
    s (q . u)^2, so no root needs to be inverted.
    """
    along = directions if basis is None else basis @ directions
    n = len(centered)
    carried = n * (along.square() @ shared).numpy()
    influences = 2 * centered @ gap + np.square(centered).sum(1) * n / (n - 1) - carried
    return np.asarray(influences - influences.mean())
