"""The names of the orders in which files have their axes and channels."""

from __future__ import annotations

OF_ARRAYS = ("L", "CL", "LC", "HW", "CHW", "HWC", "DHW", "CDHW", "DHWC")
"""The axes in their order; C is the channels, and without it there is one."""

ALPHA, PAGES = "alpha", "pages"
OF_IMAGES = (ALPHA, PAGES)
"""`alpha:RRGGBB` keeps transparency, and names the background on which the other channels are;
without the colour, it is the one that is asked for. `pages` are the channels of a TIFF."""

LAYOUTS = (*OF_ARRAYS, *OF_IMAGES)
