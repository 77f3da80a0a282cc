"""The names of the orders in which files have their axes and channels."""

from __future__ import annotations

from collections.abc import Callable, Collection

from diffuse_cli.core.registry import InvalidArgument, Registry

OF_ARRAYS = ("L", "CL", "LC", "HW", "CHW", "HWC", "DHW", "CDHW", "DHWC")
"""The axes in their order; C is the channels, and without it there is one."""

FEW = 4
"""An axis that is no longer may be the channels of a picture."""

ALPHA, PAGES = "alpha", "pages"
OF_IMAGES = (ALPHA, PAGES)
"""`alpha:RRGGBB` keeps transparency, and names the background on which the other channels are;
without the colour, it is the one that is asked for. `pages` are the channels of a TIFF."""

LAYOUTS = (*OF_ARRAYS, *OF_IMAGES)

FIRST, LAST = {3: "CHW", 4: "CDHW"}, {3: "HWC", 4: "DHWC"}
"""The layouts of arrays of so many axes with their channels first, which is usual, and last."""


def layout_of(shapes: Collection[tuple[int, ...]]) -> str | None:
    """Return the layout of arrays that do not say theirs: with their channels last where the last
    axis is one of up to four and no other is; None for the usual one.

    Raises:
        InvalidArgument: the last axis is one of up to four, and another is, or it is in some alone.
    """
    found = set[str | None]()
    for shape in (shape for shape in shapes if len(shape) in LAST):
        last, usual = shape[-1] <= FEW, min(shape[:-1]) <= FEW
        found |= {LAST[len(shape)]} if last else {None}
        found |= {None} if usual else set()
        if len(found) > 1:
            sides = " x ".join(map(str, shape))
            text = f": the channels of an array of {sides} may be its first axis or its last"
            one, other = FIRST[len(shape)], LAST[len(shape)]
            hint = f"Choose --layout {one} or {other}, in Python layout='{one}' or '{other}'"
            raise InvalidArgument(text, hint, argument="layout")
    return found.pop() if found else None


def named(layout: str | None) -> str | None:
    """A layout without the colour of its background."""
    return layout and layout.partition(":")[0]


def asked_for(layout: str | None, alpha: bool) -> str | None:
    """The layout that --layout names or --alpha stands for.

    Raises:
        InvalidArgument: both are given, and differ.
    """
    if alpha and named(layout) not in (None, ALPHA):
        raise InvalidArgument(f"is not for --layout {layout}", argument="alpha")
    return layout or (ALPHA if alpha else None)


# -- fitting --------------------------------------------------------------------------------------

# How a sample of another shape is brought to a size.

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
