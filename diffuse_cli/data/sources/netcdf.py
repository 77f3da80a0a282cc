"""Fields of a netCDF file, `DATA.nc` or `DATA.nc::t2m,pr=0`, where pr is 0 where it is missing.

Variables are channels, and dimensions beyond space count samples. Axes follow the CF conventions
(https://cfconventions.org, chapter 4). Needs netCDF4.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.data.sources import base
from diffuse_cli.media import Array, Indices, array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system import DataError, extra_package, shorten, show

UNITS = {"degrees_north": "Y", "degree_north": "Y", "degrees_east": "X", "degree_east": "X"}
NAMES = {
    **dict.fromkeys(("lat", "latitude", "rlat", "y", "south_north"), "Y"),
    **dict.fromkeys(("lon", "longitude", "rlon", "x", "west_east"), "X"),
    **dict.fromkeys(("time", "valid_time", "t"), "T"),
}
"""Axes of dimensions by their units, and by their usual names if they have no attributes."""

GAPS = {"_FillValue", "missing_value", "valid_range", "valid_min", "valid_max"}
"""Attributes that define missing values."""

WIDEST = 8
"""Largest number of bytes of a value."""

_library = threading.RLock()
"""Held in each call of the library, which is not thread-safe even for different files."""


class NetCdf(base.Source):
    """Samples of variables on one grid, named after their indices.

    Rows run from north to south, and columns from west to east.
    """

    @staticmethod
    def recognizes(path: Path) -> bool:
        file, _ = base.split_selection(path)
        return base.extension_of(file.name) == ".nc" and base.is_file(file)

    @classmethod
    def open(cls, path: Path) -> NetCdf:
        extra_package("netCDF4", "science", f"netCDF4 is needed to read {show(path)}")
        with reasons.require_usable(path), _library, reasons.errors_as(reasons.CORRUPT):
            return cls(path)

    def __init__(self, path: Path) -> None:
        import netCDF4

        super().__init__(path)
        self._file, names = base.split_selection(path)
        self._data = netCDF4.Dataset(self._file)
        self._fills = self._choose_variables(dict(map(_parse_fill, filter(None, names.split(",")))))
        variables = [self._data.variables[name] for name in self._fills]
        is_own = base.MANIFEST_FORMAT in self._data.ncattrs()
        for variable in variables:
            # By the convention, bytes have no default fill value, but the library masks 255.
            if is_own or (
                np.dtype(variable.dtype).itemsize == 1 and not GAPS & {*variable.ncattrs()}
            ):
                variable.set_auto_mask(False)
        dimensions = variables[0].dimensions
        self._grid = grid = Grid(self._data, dimensions)
        same = all({*variable.dimensions} == {*dimensions} for variable in variables)
        if not same or not grid.order:
            grids = "; ".join(f"{v.name} ({', '.join(v.dimensions)})" for v in variables)
            text = f"{show(path)}: variables need the same rows and columns: {shorten(grids, 200)}"
            raise DataError(text, code="data_unsupported", path=path)
        self.layout = "CHW" if len(grid.order) > 1 else "CL"
        self._values = len(variables) * math.prod(map(len, grid.order.values()))
        chunkings = [variable.chunking() for variable in variables]
        chunks = [math.prod(sides) for sides in chunkings if isinstance(sides, list)]
        count, size = grid.count, WIDEST * self._values
        if max(size, *(WIDEST * chunk for chunk in chunks), 0) > reasons.LARGEST_FILE:
            raise reasons.Unusable(reasons.TOO_LARGE)
        reasons.check_count(count, size, self._file.stat().st_size)
        units = [read_text(variable, "units") for variable in variables]
        named = zip(self._fills, units, strict=True)
        self.quantities = tuple(f"{name} [{unit}]" if unit else name for name, unit in named)

    def _choose_variables(self, fills: Mapping[str, float | None]) -> Mapping[str, float | None]:
        """Return the named variables, or without names the only one with the most dimensions.

        Raises:
            DataError: the file does not have them, or has several.
        """
        fields = {n: v.ndim for n, v in self._data.variables.items() if v.ndim}
        largest = {n: None for n in fields if fields[n] == max(fields.values())}
        chosen = fills or largest
        if {*chosen} <= {*fields} and (fills or len(largest) == 1):
            return chosen
        listed, path = shorten(", ".join(largest), 200), show(self._file)
        hint = f"Choose some: {path}{base.SEPARATOR}{','.join([*largest][:2])}"
        absent = [f"not {show(name)}, but " for name in chosen if name not in fields]
        text = f"{path} has {''.join(absent[:1])}the variables {listed or 'none'}"
        raise DataError(text, hint, code="data_unsupported", path=self._file)

    def entries(self) -> Iterator[base.Entry]:
        count = self._grid.count
        with reasons.require_usable(self.path):
            gaps = [self._read_row(row)[1] for row in (0, count - 1)]
        if all(gaps):
            text = f"{show(self.path)}: {gaps[0]:,} of {self._values:,} values in its first sample"
            filled = ",".join(f"{name}=0" for name in self._fills)
            hint = f"Fill them, for example with 0: {show(self._file)}{base.SEPARATOR}{filled}"
            raise DataError(f"{text} are missing", hint, code="unusable_data", path=self.path)
        for row in range(count):
            yield base.Entry(f"{row:09d}.npy", WIDEST * self._values, str(row), label="")

    def read(self, entry: base.Entry) -> bytes:
        values, gaps = self._read_row(int(entry.key))
        if gaps:
            raise reasons.Unusable(reasons.MISSING)
        return array.to_npy(values)

    def close(self) -> None:
        with _library:
            self._data.close()

    def _read_row(self, row: int) -> tuple[Array, int]:
        """Return a sample, (C, L) or (C, H, W), and the number of its missing values."""
        channels, gaps = list[Array](), 0
        for name, fill in self._fills.items():
            with _library, reasons.errors_as(reasons.CORRUPT):
                values = self._grid.read(self._data.variables[name], row)
            gaps += 0 if fill is not None else values.size - int(values.count())
            channels.append(values.filled(fill or 0))
        return np.stack(channels), gaps


def _parse_fill(text: str) -> tuple[str, float | None]:
    """Split `NAME=NUMBER`. Any other text is a name."""
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        return text, None


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
        if not space:
            space = [name for name in dimensions if axes[name] != "T"][-2:]
            axes |= zip(reversed(space), "XY", strict=False)
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

    Without coordinates they stay as stored, except those that are named `south_north`, as of WRF.
    """
    stored = np.arange(len(dataset.dimensions[dimension]))
    variable = dataset.variables.get(dimension)
    if variable is None or variable.dimensions != (dimension,) or len(stored) < 2:
        return stored[::-1] if dimension.lower() == "south_north" else stored
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


SOURCE = NetCdf
