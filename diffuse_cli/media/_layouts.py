"""The names of the orders in which files have their axes and channels."""

from __future__ import annotations

from diffuse_cli.core.errors import InvalidArgument

OF_ARRAYS = ("L", "CL", "LC", "HW", "CHW", "HWC", "DHW", "CDHW", "DHWC")
"""The axes in their order; C is the channels, and without it there is one."""

ALPHA, PAGES = "alpha", "pages"
OF_IMAGES = (ALPHA, PAGES)
"""`alpha:RRGGBB` keeps transparency, and names the background on which the other channels are;
without the colour, it is the one that is asked for. `pages` are the channels of a TIFF."""

LAYOUTS = (*OF_ARRAYS, *OF_IMAGES)


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
