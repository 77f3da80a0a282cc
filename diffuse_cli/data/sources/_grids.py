"""Axes of grids in netCDF files, by the CF conventions (https://cfconventions.org, chapter 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffuse_cli.media import Array, Indices
from diffuse_cli.media import file_errors as reasons

UNITS = {"degrees_north": "Y", "degree_north": "Y", "degrees_east": "X", "degree_east": "X"}
NAMES = {
    **dict.fromkeys(("lat", "latitude", "rlat", "y", "south_north"), "Y"),
    **dict.fromkeys(("lon", "longitude", "rlon", "x", "west_east"), "X"),
    **dict.fromkeys(("time", "valid_time", "t"), "T"),
}
"""Axes of dimensions by their units, and by their usual names if they have no attributes."""


WIDEST = 8
"""Largest number of bytes of a value."""


class Grid:
    """Grid of variables with the same dimensions.

    Attributes:
        order: the order of indices along each dimension of space, rows before columns. Without a
            known dimension of space, they are the last two that are not time.
        lengths: the lengths of all other dimensions, which count samples.

    Raises:
        Unusable: a sample is too large.
    """

    def __init__(self, dataset: Any, dimensions: Sequence[str]) -> None:
        axes = {name: find_axis(dataset, name) for name in dimensions}
        space = [name for axis in "YX" for name in dimensions if axes[name] == axis]
        space = space or [name for name in dimensions if axes[name] != "T"][-2:]
        sizes = {name: len(dataset.dimensions[name]) for name in dimensions}
        if WIDEST * math.prod(sizes[name] for name in space) > reasons.LARGEST_FILE:
            raise reasons.Unusable(reasons.TOO_LARGE)
        self.order = {name: find_order(dataset, name, axes[name]) for name in space}
        self.lengths = {name: size for name, size in sizes.items() if name not in space}
        self.count = math.prod(self.lengths.values())

    def read(self, variable: Any, row: int) -> np.ma.MaskedArray[Any, Any]:
        """Return the values of a sample, in which NaN is masked, too."""
        indices = np.unravel_index(row, tuple(self.lengths.values()))
        at = dict(zip(self.lengths, map(int, indices), strict=True))
        stored = variable[tuple(at.get(name, slice(None)) for name in variable.dimensions)]
        space = [name for name in variable.dimensions if name in self.order]
        values = np.ma.masked_invalid(stored.transpose([space.index(d) for d in self.order]))
        return values[np.ix_(*self.order.values())]


def find_axis(dataset: Any, dimension: str) -> str:
    """Return the axis of a dimension: X, Y, Z, T, or an empty text."""
    usual = NAMES.get(dimension.lower(), "")
    if (variable := dataset.variables.get(dimension)) is None:
        return usual
    units = read_text(variable, "units")
    return "T" if " since " in units else read_text(variable, "axis") or UNITS.get(units, usual)


def find_order(dataset: Any, dimension: str, axis: str) -> Indices:
    """Return the indices of rows from north to south, or of columns from west to east.

    Without coordinates they stay as stored.
    """
    stored = np.arange(len(dataset.dimensions[dimension]))
    variable = dataset.variables.get(dimension)
    if variable is None or variable.dimensions != (dimension,) or len(stored) < 2:
        return stored
    places = np.ma.filled(variable[:].astype(np.float64), np.nan)
    if axis == "X" and read_text(variable, "units").startswith("degree"):
        return order_longitudes(places)
    ascends = places[-1] > places[0]
    return stored if ascends == (axis == "X") else stored[::-1]


def order_longitudes(degrees: Array) -> Indices:
    """Return the indices of columns from west to east, each meridian once.

    They start after the widest gap, or at the date line if the grid goes around the globe.
    """
    east, order = np.unique(np.round(degrees + 180, 6) % 360, return_index=True)
    gaps = np.diff(east, append=east[0] + 360)
    start = gaps.argmax() + 1 if gaps.max() > 1.5 * np.median(gaps) else 0
    return np.roll(order, -start)


def read_text(variable: Any, attribute: str) -> str:
    """Return the start of an attribute, empty if the variable does not have it."""
    return str(variable.getncattr(attribute))[:60] if attribute in variable.ncattrs() else ""
