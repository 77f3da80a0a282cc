"""Lowest frequencies of a data set, and an initial noise distribution with their variance.

At high noise, q(x_t) is nearly the Gaussian with the data's mean and covariance (Wang & Vastola
2024), and a network that trained for a few minutes predicts worse than that Gaussian. Only
brightness and layout are visible in so much noise: the lowest frequencies, whose variance is
hundreds of times larger than a pixel's. A long first step from pure noise loses much of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.cosine_transform import apply_bases, cosines
from diffuse_cli.core.registry import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor

NAME = "low_frequencies"
"""Key of the low frequencies in model descriptions."""

LOWEST = {1: 8, 2: 8, 3: 4}
"""Number of frequencies along each dimension, by the number of dimensions."""

LOG_SNR, VALUES = -4.0, 32 * 32
"""log(alpha^2 / sigma^2) at the start, for samples with `VALUES` positions. With m times as many
positions it is log(m) lower, because their mean is m times more informative (Hoogeboom et al. 2023,
eq. 3)."""


@dataclass(frozen=True)
class LowFrequencies:
    """Mean and variance of the cosine transform of a data set, in uncorrelated channels.

    Attributes:
        size: the size of the samples.
        colors: an orthogonal matrix (C, C), each of whose rows makes one of the channels that are
            uncorrelated over all frequencies.
        mean, variance: the mean and variance (C, *lowest) in these channels, as nested tuples.
    """

    size: tuple[int, ...]
    colors: tuple[Any, ...]
    mean: tuple[Any, ...]
    variance: tuple[Any, ...]

    @property
    def log_snr(self) -> float:
        """The log-SNR log(alpha^2 / sigma^2) at which sampling starts."""
        return LOG_SNR - math.log(math.prod(self.size) / VALUES)

    @property
    def plain(self) -> dict[str, Any]:
        """The plain values that `read` reads."""
        return {"colors": self.colors, "mean": self.mean, "variance": self.variance}

    def make_initial_noise(self, noise: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return x_t from N(0, 1) noise (B, C, *size).

        It is alpha mean + sqrt(alpha^2 variance + sigma^2) noise in the lowest frequencies, and
        sigma noise in all others.
        """
        import torch

        cast = partial(torch.tensor, dtype=noise.dtype, device=noise.device)
        colors, mean, variance = map(cast, (self.colors, self.mean, self.variance))
        lowest = mean.shape[1:]
        low = _mix_channels(colors, apply_bases(noise, _bases(noise, lowest)))
        more = (alpha**2 * variance + sigma**2).sqrt() - sigma
        added = _mix_channels(colors.T, alpha * mean + more * low)
        return sigma * noise + apply_bases(added, [basis.T for basis in _bases(noise, lowest)])


def measure(batches: Iterable[Tensor]) -> LowFrequencies:
    """Measure the low frequencies of batches of samples (N, C, *size) to six digits.

    Samples are in the model's numbers.

    Raises:
        ValueError: there are no samples.
    """
    import torch

    lows: list[Tensor] = []
    total = products = torch.zeros(())
    for batch in batches:
        x = batch.double()
        lows.append(apply_bases(x, _bases(x, count_frequencies(x.shape[2:]))))
        total = total + x.sum(0)
        flat = x.movedim(1, 0).flatten(1)
        products = products + flat @ flat.T
    if not lows:
        raise ValueError("no samples to measure")
    low, (channels, *size) = torch.cat(lows), total.shape
    own = total.reshape(channels, -1)
    _, vectors = torch.linalg.eigh((products - own @ own.T / len(low)) / len(low) / own.shape[1])
    colors = vectors.T * torch.where(vectors.T.sum(1, keepdim=True) < 0, -1.0, 1.0)
    low = _mix_channels(colors, low)
    mean, variance = low.mean(0), low.var(0, correction=0)
    tables = (_as_tuples(table.tolist()) for table in (colors, mean, variance))
    return LowFrequencies(tuple(size), *tables)


def read(values: Mapping[str, Any], channels: int, size: Sequence[int]) -> LowFrequencies:
    """Read low frequencies for samples of a shape from the plain values of `plain`.

    Raises:
        InvalidArgument: wrong shapes, numbers that are not finite, or a negative variance.
    """
    import torch

    shape = (channels, *count_frequencies(size))
    wanted = {"colors": (channels, channels), "mean": shape, "variance": shape}
    found = {}
    for name, fits in wanted.items():
        try:
            tensor = torch.tensor(values[name], dtype=torch.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument("must be a table of numbers", argument=name) from error
        if tuple(tensor.shape) != fits or not bool(tensor.isfinite().all()):
            raise InvalidArgument(f"must be finite numbers of shape {fits}", argument=name)
        if name == "variance" and bool((tensor < 0).any()):
            raise InvalidArgument("must not be negative", argument=name)
        found[name] = _as_tuples(tensor.tolist())
    return LowFrequencies(size=tuple(size), **found)


def count_frequencies(size: Sequence[int]) -> tuple[int, ...]:
    """Return the number of frequencies to keep along each dimension."""
    return tuple(min(side, LOWEST[len(size)]) for side in size)


def _bases(like: Tensor, lowest: Sequence[int]) -> list[Tensor]:
    """Return the transform to the lowest frequencies of each dimension, (k, side).

    Angles are rounded to float32, so that seeds give the same samples as in earlier versions.
    """
    import torch

    sides = zip(like.shape[2:], lowest, strict=True)
    rows = (torch.from_numpy(cosines(side, count, "float32")) for side, count in sides)
    return [each.to(like.dtype).to(like.device) for each in rows]  # float64 is not on every device


def _mix_channels(colors: Tensor, x: Tensor) -> Tensor:
    """Multiply the channels of x (B, C, *size) by a matrix."""
    return (x.movedim(1, -1) @ colors.T).movedim(-1, 1)


def _as_tuples(values: Any) -> Any:
    """Turn lists into tuples and round to six digits, because machines differ in later digits."""
    if isinstance(values, list | tuple):
        return tuple(_as_tuples(value) for value in values)
    return float(f"{values:.6g}")
