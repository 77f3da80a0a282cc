"""Fréchet distance between Gaussians fitted to the features (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

It is called FID only with the Inception weights of 2015, which this module knows nothing of. For
few samples it is mostly bias (Chong & Forsyth 2020): compare only at equal n.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

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
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * shared
    return float(np.square(mean_a - mean_b).sum() + spread.item())


def _root(centred: Array) -> torch.Tensor:
    """R of at most d rows with R^T R = the covariance of the centred rows (N, d)."""
    n, d = centred.shape
    root = torch.from_numpy(centred) / math.sqrt(n - 1)
    # torch's QR is three times as fast as NumPy's.
    return torch.linalg.qr(root, mode="r").R if n > d else root
