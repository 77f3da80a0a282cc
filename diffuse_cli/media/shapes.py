"""Layouts, the orders of axes and channels in files, and fits to a size."""

from __future__ import annotations

from collections.abc import Callable, Collection

from diffuse_cli.core import InvalidArgument, Registry

OF_ARRAYS = ("L", "CL", "LC", "HW", "CHW", "HWC", "DHW", "CDHW", "DHWC")
"""Orders of axes. C is the channels. A layout without it has one channel."""

FEW = 4
"""Longest axis that may be the channels of an image."""

ALPHA, PAGES = "alpha", "pages"
OF_IMAGES = (ALPHA, PAGES)
"""`alpha:RRGGBB` keeps transparency, with the other channels on this background. `alpha` uses the
requested background. With `pages`, the pages of a TIFF are channels."""

LAYOUTS = (*OF_ARRAYS, *OF_IMAGES)

FIRST, LAST = {3: "CHW", 4: "CDHW"}, {3: "HWC", 4: "DHWC"}
"""Layouts with the channels first, the usual order, and last, by the number of axes."""


def infer_layout(shapes: Collection[tuple[int, ...]]) -> str | None:
    """Return the layout of arrays by their shapes, None for the usual layout.

    The channels are last if only the last axis has up to four entries.

    Raises:
        InvalidArgument: the last axis and another have up to four entries, or the arrays differ.
    """
    layouts = set[str | None]()
    for shape in (shape for shape in shapes if len(shape) in LAST):
        last, usual = shape[-1] <= FEW, min(shape[:-1]) <= FEW
        layouts |= {LAST[len(shape)]} if last else {None}
        layouts |= {None} if usual else set()
        if len(layouts) > 1:
            sides = " x ".join(map(str, shape))
            text = f": the channels of an array of {sides} may be its first axis or its last"
            front, back = FIRST[len(shape)], LAST[len(shape)]
            hint = f"Choose --layout {front} or {back}, in Python layout='{front}' or '{back}'"
            raise InvalidArgument(text, hint, argument="layout")
    return layouts.pop() if layouts else None


def layout_name(layout: str | None) -> str | None:
    """Return a layout without the color of its background."""
    return layout and layout.partition(":")[0]


def resolve_layout(layout: str | None, alpha: bool) -> str | None:
    """Return the layout of --layout, or `alpha` for --alpha.

    Raises:
        InvalidArgument: both are set, and differ.
    """
    if alpha and layout_name(layout) not in (None, ALPHA):
        raise InvalidArgument(f"is not for --layout {layout}", argument="alpha")
    return layout or (ALPHA if alpha else None)


# Bring a sample of another shape to a size.

Size = tuple[int, ...]
Lengths = tuple[float, ...]

Fit = Callable[[Size, Size], tuple[Lengths, Lengths]]
"""Function from a sample's size and the size of the result to two sizes: the part of the sample
that is kept, and the part of the result that it is scaled to. Both are at the center."""


def crop(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Cover the result, and cut off the rest of the sample."""
    scale = min(a / b for a, b in zip(sample_size, target_size, strict=True))
    return tuple(scale * side for side in target_size), target_size


def pad(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Keep the whole sample, and fill the rest of the result with the background."""
    scale = max(a / b for a, b in zip(sample_size, target_size, strict=True))
    return sample_size, tuple(side / scale for side in sample_size)


def stretch(sample_size: Size, target_size: Size) -> tuple[Lengths, Lengths]:
    """Scale each side independently."""
    return sample_size, target_size


FITS: Registry[Fit] = Registry("fits", {"crop": crop, "pad": pad, "stretch": stretch})
