"""Fréchet distance between Gaussians fitted to the features (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

It is called FID only with the Inception weights of 2015, which this module knows nothing of. For
few samples it is mostly bias (Chong & Forsyth 2020): compare only at equal n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.metrics import both

if TYPE_CHECKING:
    from diffuse_cli.metrics import Array, Features

NEEDS = ("features",)


def compute(evaluation: Features) -> dict[str, float]:
    """`frechet_distance`, with covariances over n - 1, exact for n below d too.

    Raises:
        UsageError: fewer than two images on a side.
    """
    real, fake = both(evaluation, "the Fréchet distance")
    return {"frechet_distance": distance(real, fake)}


def distance(a: Array, b: Array) -> float:
    """Squared Fréchet distance of float64 features (N, d) and (M, d)."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = _root(a - mean_a), _root(b - mean_b)
    # S = R^T R on both sides, so S_a S_b has the non-zero eigenvalues of (R_a R_b^T)(R_a R_b^T)^T:
    # the trace of its root is a sum of singular values, and nothing ill-conditioned is rooted.
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    apart = np.square(mean_a - mean_b).sum()
    return float(apart + np.square(root_a).sum() + np.square(root_b).sum() - 2 * shared)


def _root(centred: Array) -> Array:
    """R of at most d rows with R^T R = the covariance of the centred rows."""
    n, d = centred.shape
    root: Array = centred / np.sqrt(n - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if n > d else root
