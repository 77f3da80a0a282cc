"""Mean squared error of the predicted x_0 at each noise level, for the variance `optimal`.

Averaged over x_t and dimensions, Var(x_0 | x_t) is the error of the conditional mean, which a
network is trained to predict. So a few numbers, measured on held-out samples, give the best
variance of every reverse step (Bao et al. 2022, theorem 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.core.process import Process
from diffuse_cli.core.registry import InvalidArgument

NAME = "errors"
"""Key of the errors in model descriptions."""

POINTS = 32
"""Number of timesteps to measure. Under `cosine` they are a nat of log-SNR apart."""

LOWEST = -15.0
"""Log-SNR below which errors are constant: the best prediction is the mean of the data."""

LEAST = 1e-10
"""Least error, so that its logarithm is finite. Rounding to 16 bits has about as much."""


@dataclass(frozen=True)
class DenoisingErrors:
    """Mean squared errors of x_0, between which logarithms are interpolated over log-SNR.

    Attributes:
        log_snrs: the log-SNRs, log(alpha^2 / sigma^2), descending.
        errors: the mean squared error per dimension at each, in the model's numbers.
    """

    log_snrs: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def plain(self) -> dict[str, Any]:
        """The plain values that `read` reads."""
        return {"log_snrs": self.log_snrs, "errors": self.errors}

    def interpolate(self, log_snrs: Any) -> Any:
        """Return the error at one log-SNR or at an array of them, in float64."""
        levels, logs = -np.array(self.log_snrs), np.log(self.errors)
        return np.exp(np.interp(-np.asarray(log_snrs), levels, logs))


def choose_timesteps(process: Process) -> dict[int, float]:
    """Return the timesteps to measure, ascending, and the log-SNR of each, at least `LOWEST`."""
    levels = process.log_snr(torch.arange(process.num_timesteps)).clamp(min=LOWEST)
    even_levels = torch.linspace(float(levels[0]), float(levels[-1]), POINTS, dtype=levels.dtype)
    nearest = (levels - even_levels[:, None]).abs().argmin(1).unique().tolist()
    return {t: float(f"{float(levels[t]):.6g}") for t in nearest}


def average(timesteps: Mapping[int, float], errors: Mapping[int, Tensor]) -> DenoisingErrors | None:
    """Return the mean error at each of the `timesteps`, to five digits, or None if one is infinite.

    Args:
        timesteps: the result of `choose_timesteps`.
        errors: the error of each sample at each timestep.
    """
    means = [float(errors[t].double().mean()) for t in timesteps]
    if not all(map(math.isfinite, means)):
        return None
    rounded = (float(f"{max(mean, LEAST):.5g}") for mean in means)
    return DenoisingErrors(tuple(timesteps.values()), tuple(rounded))


def read(values: Mapping[str, Any]) -> DenoisingErrors:
    """Read errors from the plain values of `DenoisingErrors.plain`.

    Raises:
        InvalidArgument: not two lists of finite numbers of one length, or in the wrong order, or an
            error that is not positive.
    """
    try:
        log_snrs, errors = (tuple(map(float, values[name])) for name in ("log_snrs", "errors"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument("must be lists of numbers", argument=NAME) from error
    falling = all(a > b for a, b in pairwise(log_snrs))
    positive = all(LEAST <= error < math.inf for error in errors)
    finite = all(map(math.isfinite, log_snrs))
    if not (0 < len(log_snrs) == len(errors) and finite and falling and positive):
        raise InvalidArgument("must be positive, at falling log-SNRs", argument=NAME)
    return DenoisingErrors(log_snrs, errors)
