"""The Gaussian with the mean and the spectrum of a data set, as a reference and as a start.

The best denoiser of a Gaussian is linear, the Wiener filter. It is nearly exact at high noise,
where q(x_t) is nearly Gaussian (Wang & Vastola 2024), and a network that corrects it has less to
learn. A start of sampling from the Gaussian of the lowest frequencies keeps brightness and layout,
whose variance is hundreds of times larger than a pixel's. A long first step from pure noise loses
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import InvalidArgument

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Tables = tuple[Tensor, Tensor, Tensor, list[Tensor]]

NAME = "low_frequencies"
"""Key of the Gaussian in model descriptions."""

LOWEST = {1: 8, 2: 8, 3: 4}
"""Number of lowest frequencies along each dimension, by the number of dimensions."""

BANDS_PER_OCTAVE = 3
"""Above the lowest frequencies, frequencies of a third of an octave share a variance."""

LOG_SNR, VALUES = -4.0, 32 * 32
"""log(alpha^2 / sigma^2) at the start, for samples with `VALUES` positions. With m times the
positions it is log(m) lower, because their mean is m times more informative (Hoogeboom et al. 2023,
eq. 3)."""

LONGEST = 2048
"""Longest side for the filter, whose transform is a matrix of side x side numbers."""

LEAST = 1e-6
"""Least variance of a frequency: less than the rounding of 8-bit images adds."""


@dataclass(frozen=True)
class DataGaussian:
    """Gaussian whose cosine transform is independent, in uncorrelated channels.

    Attributes:
        size: the size of the samples.
        colors: an orthogonal matrix (C, C), each of whose rows makes one of the channels that are
            uncorrelated over all frequencies.
        mean, variance: the mean and variance (C, *lowest) in these channels, as nested tuples.
        bands: the variance (C, *bands) in bands of all frequencies, or None if only the lowest
            were measured. Means above the lowest frequencies are 0.
    """

    size: tuple[int, ...]
    colors: tuple[Any, ...]
    mean: tuple[Any, ...]
    variance: tuple[Any, ...]
    bands: tuple[Any, ...] | None = None

    @property
    def log_snr(self) -> float:
        """The log-SNR log(alpha^2 / sigma^2) at which sampling starts."""
        return LOG_SNR - math.log(math.prod(self.size) / VALUES)

    @property
    def plain(self) -> dict[str, Any]:
        """The plain values that `read` reads."""
        values = {"colors": self.colors, "mean": self.mean, "variance": self.variance}
        return values if self.bands is None else {**values, "bands": self.bands}

    def make_initial_noise(self, noise: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return x_t from N(0, 1) noise (B, C, *size).

        It is alpha mean + sqrt(alpha^2 variance + sigma^2) noise in the lowest frequencies, and
        sigma noise in all others.
        """
        import torch

        cast = partial(torch.tensor, dtype=noise.dtype, device=noise.device)
        colors, mean, variance = map(cast, (self.colors, self.mean, self.variance))
        bases = _bases(noise, mean.shape[1:])
        low = _mix_channels(colors, apply_bases(noise, bases))
        more = (alpha**2 * variance + sigma**2).sqrt() - sigma
        added = _mix_channels(colors.T, alpha * mean + more * low)
        return sigma * noise + apply_bases(added, [matrix.T for matrix in bases])

    def denoise(self, x_t: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """Return E[x_0 | x_t] for x_t = alpha x_0 + sigma eps, the Wiener filter, (B, C, *size).

        The estimate is m + alpha s / (alpha^2 s + sigma^2) (x_t - alpha m) in each frequency of
        each uncorrelated channel, with mean m and variance s.

        Args:
            alpha: a number, or a tensor that broadcasts against x_t.
            sigma: like alpha.
        """
        colors, mean, variance, bases = self._tables(x_t)
        x = _mix_channels(colors, apply_bases(x_t, bases)) - alpha * mean
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * x
        return apply_bases(_mix_channels(colors.T, x0), [matrix.T for matrix in bases])

    def scale(self, alpha: Any, sigma: Any, like: Tensor) -> Tensor:
        """Return the scale of corrections of `denoise`, in x_0, that broadcasts against `like`.

        It is the error that the filter leaves, the root of the mean over frequencies of
        sigma^2 s / (alpha^2 s + sigma^2). Where x_t tells nothing it is the spread of the data,
        because conditions may still tell something, and a distilled model generates in one step.
        """
        variance = self._tables(like)[2][None]
        squared_error = sigma**2 * variance / (alpha**2 * variance + sigma**2)
        scale: Tensor = squared_error.mean(tuple(range(1, variance.ndim)), keepdim=True).sqrt()
        return scale

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], Tables]:
        return {}

    def _tables(self, like: Tensor) -> Tables:
        """Return the colors, the mean and variance (C, *size) and the bases on the device of
        `like`."""
        import torch

        device, dtype = key = like.device, like.dtype
        if key in self._copies:
            return self._copies[key]
        with torch.inference_mode(False):  # later gradients may need them
            variance = torch.tensor(self.bands, dtype=torch.float64).clamp(min=LEAST)
            for dim, side in enumerate(self.size, 1):
                variance = variance.index_select(dim, torch.tensor(assign_bands(side, self.size)))
            mean = torch.zeros_like(variance)
            _view_lowest(mean).copy_(torch.tensor(self.mean, dtype=torch.float64))
            colors = torch.tensor(self.colors, dtype=torch.float64)
            # Cast on the CPU, because float64 is not on every device.
            colors, mean, variance = (t.to(dtype).to(device) for t in (colors, mean, variance))
            bases = [basis(side, dtype, device) for side in self.size]
            self._copies[key] = colors, mean, variance, bases
            return self._copies[key]


def measure(read: Callable[[], Iterable[Tensor]], *, bands: bool = True) -> DataGaussian:
    """Measure the Gaussian of batches of samples (N, C, *size) to six digits.

    Samples are in the model's numbers.

    Args:
        read: returns the batches, and is called twice.
        bands: whether to measure the variance of all frequencies.

    Raises:
        ValueError: there are no samples.
    """
    import torch

    total = products = torch.zeros(())
    count = 0
    for batch in read():
        x = batch.double()
        count, total = count + len(x), total + x.sum(0)
        flat = x.movedim(1, 0).flatten(1)
        products = products + flat @ flat.T
    if not count:
        raise ValueError("no samples to measure")
    channels, *size = total.shape
    sums = total.reshape(channels, -1)
    _, vectors = torch.linalg.eigh((products - sums @ sums.T / count) / count / sums.shape[1])
    colors = vectors.T * torch.where(vectors.T.sum(1, keepdim=True) < 0, -1.0, 1.0)

    total = squares = torch.zeros(())
    for batch in read():
        x = batch.double()
        waves = apply_bases(x, _bases(x, size if bands else count_frequencies(size)))
        waves = _mix_channels(colors, waves)
        total, squares = total + _view_lowest(waves.sum(0)), squares + waves.square().sum(0)
    mean, squares = total / count, squares / count
    _view_lowest(squares).sub_(mean.square()).clamp_(min=0)
    tables = [colors, mean, _view_lowest(squares)]
    if bands:
        tables.append(_average_bands(squares))
    return DataGaussian(tuple(size), *(_as_tuples(table.tolist()) for table in tables))


def read(values: Mapping[str, Any], channels: int, size: Sequence[int]) -> DataGaussian:
    """Read the Gaussian of samples of a shape from the plain values of `plain`.

    Raises:
        InvalidArgument: wrong shapes, numbers that are not finite, or a negative variance.
    """
    import torch

    shape = (channels, *count_frequencies(size))
    shapes = {"colors": (channels, channels), "mean": shape, "variance": shape}
    if "bands" in values:
        shapes["bands"] = (channels, *(assign_bands(side, size)[-1] + 1 for side in size))
    tables = {}
    for name, fits in shapes.items():
        try:
            tensor = torch.tensor(values[name], dtype=torch.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument("must be a table of numbers", argument=name) from error
        if tuple(tensor.shape) != fits or not bool(tensor.isfinite().all()):
            raise InvalidArgument(f"must be finite numbers of shape {fits}", argument=name)
        if name in ("variance", "bands") and bool((tensor < 0).any()):
            raise InvalidArgument("must not be negative", argument=name)
        tables[name] = _as_tuples(tensor.tolist())
    return DataGaussian(size=tuple(size), **tables)


def count_frequencies(size: Sequence[int]) -> tuple[int, ...]:
    """Return the number of lowest frequencies along each dimension."""
    return tuple(min(side, LOWEST[len(size)]) for side in size)


def _view_lowest(values: Tensor) -> Tensor:
    """Return the lowest frequencies of (C, *size)."""
    for dim, count in enumerate(count_frequencies(values.shape[1:]), 1):
        values = values.narrow(dim, 0, count)
    return values


def assign_bands(side: int, size: Sequence[int]) -> list[int]:
    """Return the band of each frequency along a side: its own for the lowest frequencies."""
    lowest = LOWEST[len(size)]
    octaves = (math.log2(k / lowest) for k in range(lowest, side))
    higher = [lowest + math.floor(BANDS_PER_OCTAVE * octave + 1e-9) for octave in octaves]
    numbers = [*range(min(lowest, side)), *higher]
    order = {number: band for band, number in enumerate(dict.fromkeys(numbers))}
    return [order[number] for number in numbers]


def _average_bands(values: Tensor) -> Tensor:
    """Return the means of (C, *size) over bands, (C, *bands)."""
    import torch

    size = values.shape[1:]
    for dim, side in enumerate(size, 1):
        bands = torch.tensor(assign_bands(side, size))
        sums = values.new_zeros(*values.shape[:dim], int(bands[-1]) + 1, *values.shape[dim + 1 :])
        shape = [-1 if d == dim else 1 for d in range(values.ndim)]
        values = sums.index_add(dim, bands, values) / bands.bincount().reshape(shape)
    return values


def _bases(like: Tensor, lowest: Sequence[int]) -> list[Tensor]:
    """Return the transform to the lowest frequencies of each dimension, (k, side).

    Angles are rounded to float32, so that seeds give the same samples as in earlier versions.
    """
    import torch

    sides = zip(like.shape[2:], lowest, strict=True)
    rows = (torch.from_numpy(cosines(side, count, "float32")) for side, count in sides)
    return [row.to(like.dtype).to(like.device) for row in rows]  # float64 is not on every device


def _mix_channels(colors: Tensor, x: Tensor) -> Tensor:
    """Multiply the channels of x (B, C, *size) by a matrix."""
    mixed: Tensor = (colors @ x.flatten(2)).unflatten(2, x.shape[2:])
    return mixed


def _as_tuples(values: Any) -> Any:
    """Turn lists into tuples and round to six digits, because machines differ in later digits."""
    if isinstance(values, list | tuple):
        return tuple(_as_tuples(value) for value in values)
    return float(f"{values:.6g}")


# -- cosine transform -----------------------------------------------------------------------------

# The orthonormal cosine transform (DCT-II) of samples, a matrix for each spatial dimension.


def cosines(side: int, count: int, rounded: str = "float64") -> Any:
    """Return the first rows of the transform of `side` values, a float64 array (count, side).

    Args:
        rounded: the type in which angular frequencies are computed.
    """
    import numpy as np

    frequencies = np.arange(count, dtype=rounded) * np.asarray(math.pi / side, rounded)
    rows = np.cos(np.outer(frequencies.astype("float64"), np.arange(side) + 0.5))
    rows *= math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows


@lru_cache(maxsize=32)
def basis(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of the cosine transform of a side, with a row for each frequency."""
    import torch

    with torch.inference_mode(False):  # the cached matrix may later be used with gradients
        return torch.from_numpy(cosines(side, side)).to(dtype).to(device)


def apply_bases(x: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Return each spatial dimension of x (B, C, *size) times the matrix that belongs to it."""
    for dim, matrix in enumerate(bases, 2):
        x = (x.movedim(dim, -1) @ matrix.mT).movedim(-1, dim)
    return x


def scale_frequencies(x: Tensor, gains: Tensor) -> Tensor:
    """Multiply each frequency of x (B, C, *size) by a gain, (*size)."""
    bases = [basis(side, x.dtype, x.device) for side in x.shape[2:]]
    return apply_bases(apply_bases(x, bases) * gains, [matrix.mT for matrix in bases])
