"""Shape of a sample, and the conversion between stored numbers and the model's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from diffuse_cli.core.registry import InvalidArgument, Registry, lookup
from diffuse_cli.core.settings import Settings, dimensions, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Function = Callable[[Tensor], Tensor]


LONGEST_SIDE, LONGEST_SIGNAL, MOST_CHANNELS = 4096, 2**20, 64
"""Longest side in two or three dimensions, longest side in one dimension, and most channels."""

LEAST_STD = 1e-30
"""The smallest standard deviation of a channel, by which values are divided."""


def longest_side(dims: int) -> int:
    """Return the longest side of samples with a number of dimensions."""
    return LONGEST_SIDE if dims > 1 else LONGEST_SIGNAL


@dataclass(frozen=True, kw_only=True)
class Space(Settings):
    """Arrays of one shape, stored as levels or as floats.

    For the model, levels are scaled so that the two `limits`, by default 0 and `levels` - 1, are at
    -1 and 1. Floats become (f(x) - mean) / std in each channel, without a range, where f is the
    transform.

    Attributes:
        channels: the number of channels C.
        size: the one to three spatial dimensions, (H, W) for an image.
        medium: a name in `MEDIA`.
        levels: the number of levels, or None for floats.
        limits: the lowest and highest level of the samples, if they do not use all levels.
        mean, std: the mean and standard deviation of f(x) per channel, for floats. Empty for
            levels.
        transform: f, a name in `TRANSFORMS`, for floats, or None for f(x) = x.
        layout: the axes of a sample in its file, if the medium has several layouts.
        rate: the sampling rate of sounds in Hz.
        quantities: the name and unit of each channel, such as `t2m [K]`. Empty if unknown.

    Raises:
        InvalidArgument: a value out of range, a `mean` or `std` of the wrong length, limits that
            are not two levels in order, an unknown transform, or a transform of levels.
    """

    channels: int = setting(low=1, high=MOST_CHANNELS)
    size: tuple[int, ...] = setting(low=1, high=LONGEST_SIGNAL)
    medium: str = setting("image")
    levels: int | None = setting(256, 2, 65_536)
    limits: tuple[int, ...] | None = setting(None)
    mean: tuple[float, ...] = setting(())
    std: tuple[float, ...] = setting((), low=LEAST_STD)
    transform: str | None = setting(None)
    layout: str | None = setting(None)
    rate: int | None = setting(None, 1, 2**20)
    quantities: tuple[str, ...] = setting(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.size) <= 3:
            raise InvalidArgument("must have one to three dimensions", argument="size")
        if max(self.size) > (max_side := longest_side(self.dims)):
            raise InvalidArgument(f"must be at most {max_side} per side", argument="size")
        count = self.channels if self.levels is None else 0
        for name in ("mean", "std"):
            if len(getattr(self, name)) != count:
                raise InvalidArgument(f"must have {count} numbers", argument=name)
        if len(self.quantities) not in (0, self.channels):
            raise InvalidArgument(f"must be {self.channels} names", argument="quantities")
        if self.limits is not None:
            top = 0 if self.levels is None else self.levels - 1
            if len(self.limits) != 2 or not 0 <= self.limits[0] < self.limits[1] <= top:
                raise InvalidArgument("must be two levels in order", argument="limits")
        if self.transform is not None:
            lookup(TRANSFORMS, self.transform, "transform")
        if self.transform == "none":
            object.__setattr__(self, "transform", None)
        if self.transform is not None and self.levels is not None:
            text = f"is for floats, not for {self.levels:,} levels"
            raise InvalidArgument(text, argument="transform", code="option_unsuited")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a space from plain values. Those with a mean and without levels are for floats."""
        floats = bool(values.get("mean")) and "levels" not in values
        return super().from_dict({**values, "levels": None} if floats else values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (C, *size)."""
        return (self.channels, *self.size)

    @property
    def dims(self) -> int:
        """The number of spatial dimensions."""
        return len(self.size)

    @property
    def size_text(self) -> str:
        """The size in words, see `dimensions`."""
        return dimensions(self.size)

    @property
    def level_range(self) -> tuple[int, int] | None:
        """The levels at -1 and 1, or None for floats."""
        if self.levels is None:
            return None
        low, high = self.limits or (0, self.levels - 1)
        return low, high

    @property
    def bins(self) -> int | None:
        """The number of levels from -1 to 1, or None for floats."""
        return None if self.level_range is None else self.level_range[1] - self.level_range[0] + 1

    @property
    def stored_dtype(self) -> str:
        """The name of the NumPy type in which samples are stored."""
        if self.levels is None:
            return "float32"
        return "bool" if self.levels == 2 else "uint8" if self.levels <= 256 else "uint16"

    def to_model(self, stored: Tensor) -> Tensor:
        """Convert stored samples (B, C, *size) to the model's numbers, float32."""
        if self.level_range is not None:
            low, high = self.level_range
            return (stored.float() - low) / ((high - low) / 2) - 1
        mean, std = (self._per_channel(v, stored) for v in (self.mean, self.std))
        x = stored.float()
        if self.transform is not None:
            x = TRANSFORMS[self.transform].forward(x)
        return (x - mean) / std

    def to_stored(self, x: Tensor) -> Tensor:
        """Convert the model's numbers to stored samples.

        They are levels, rounded and clamped (uint8 or int32), or float32.
        """
        x = x.detach().float()
        if self.levels is None or self.level_range is None:
            mean, std = (self._per_channel(v, x) for v in (self.mean, self.std))
            x = x * std + mean
            return x if self.transform is None else TRANSFORMS[self.transform].inverse(x)
        low, high = self.level_range
        levels = x.add(1).mul((high - low) / 2).round().add(low).clamp(low, high)
        return levels.byte() if self.levels <= 256 else levels.int()

    def log_slope(self, stored: Tensor) -> Tensor:
        """Return log |d model / d stored|, elementwise, in nats.

        A density of the model's numbers, times its exponential, is a density of stored numbers.
        """
        if self.level_range is not None:
            low, high = self.level_range
            return stored.float().fill_(math.log(2 / (high - low)))
        std = self._per_channel(self.std, stored)
        slope = -std.log().expand(stored.shape)
        if self.transform is None:
            return slope
        return slope + TRANSFORMS[self.transform].log_slope(stored.float())

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        import torch

        column = torch.tensor(values, dtype=torch.float32)
        return send(column, like.device).reshape(-1, *[1] * self.dims)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy values from the CPU to a device. The program does not wait for a GPU."""
    gpu = device.type == "cuda" and values.device.type == "cpu"
    return (values.pin_memory() if gpu else values).to(device, non_blocking=gpu)


def expand_batch(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1), to broadcast against `like` of shape (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


# -- transforms -----------------------------------------------------------------------------------

# Transforms of stored floats, applied before standardizing. All functions are elementwise.


@dataclass(frozen=True)
class Transform:
    """Increasing function of a number.

    Attributes:
        forward, inverse: f and its inverse.
        log_slope: log f', in nats. A density of f(x) times f' is a density of x.
        takes: a description of the numbers for which it is defined.
    """

    forward: Function
    inverse: Function
    log_slope: Function
    takes: str = "finite numbers"


TRANSFORMS: Registry[Transform] = Registry(
    "transforms",
    {
        "none": Transform(lambda x: x, lambda y: y, lambda x: x.new_zeros(x.shape)),
        "log": Transform(
            lambda x: x.log(), lambda y: y.exp(), lambda x: -x.log(), "numbers above 0"
        ),
        "asinh": Transform(
            lambda x: x.asinh(), lambda y: y.sinh(), lambda x: -x.hypot(x.new_ones(())).log()
        ),
    },
)
"""`log` is for values that span decades and are never 0, such as densities. `asinh` works for both
signs. It is linear near 0 and logarithmic far from it."""
