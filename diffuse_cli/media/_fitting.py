"""How a sample of another shape is brought to a size."""

from __future__ import annotations

from collections.abc import Callable

from diffuse_cli.core.registry import Registry

Size = tuple[int, ...]
Lengths = tuple[float, ...]

Fit = Callable[[Size, Size], tuple[Lengths, Lengths]]
"""From a sample's size and the size wanted: the part of the sample that is kept, and the part of
the result that it is scaled to. Both are at the centre."""


def crop(own: Size, wanted: Size) -> tuple[Lengths, Lengths]:
    """Cover the result, and cut off what is beyond it."""
    scale = min(a / b for a, b in zip(own, wanted, strict=True))
    return tuple(scale * side for side in wanted), wanted


def pad(own: Size, wanted: Size) -> tuple[Lengths, Lengths]:
    """Keep the whole sample; the rest of the result is background."""
    scale = max(a / b for a, b in zip(own, wanted, strict=True))
    return own, tuple(side / scale for side in own)


def stretch(own: Size, wanted: Size) -> tuple[Lengths, Lengths]:
    """Scale each side by itself."""
    return own, wanted


FITS: Registry[Fit] = Registry("fits", {"crop": crop, "pad": pad, "stretch": stretch})
