"""Values from the command line and TOML: sizes, colors, lists, intervals, betas, vectors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import MOST_ENTRIES
from diffuse_cli.core.settings import shorten_repr
from diffuse_cli.system.descriptors import open_regular_file, read_bounded

if TYPE_CHECKING:
    import numpy.typing as npt

Size = tuple[int, ...]


def parse_size(value: Any) -> Size:
    """`64`, `"64"`, `"48x64"` or `[48, 64]` as (height, width); `8x16x16`, or a list of one to
    three numbers, as the sides of arrays.

    Of one number every side is as long: it stands for any number of dimensions.
    """
    if isinstance(value, (list, tuple)) and 1 <= len(value) <= 3:
        sides = tuple(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        sides = value, value
    elif isinstance(value, str) and re.fullmatch(r"\d{1,5}([xX]\d{1,5}){0,2}", value):
        sides = tuple(int(side) for side in value.lower().split("x"))
        sides = sides * 2 if len(sides) == 1 else sides
    else:
        raise ValueError("a size is a number of pixels, or HEIGHTxWIDTH")
    return _check_sides(sides, 4096, "a side is 1 to 4096 pixels")


def parse_length(value: Any) -> Size:
    """Parse a size, of which one number can be larger, for signals and sounds."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,7}", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = value, value
    if isinstance(value, (list, tuple)) and 1 <= len(value) <= 3 and len(set(value)) == 1:
        return _check_sides(
            tuple(value), 2**20, "a side is 1 to 4096 pixels, or up to 1048576 samples"
        )
    return parse_size(value)


def _check_sides(sides: tuple[Any, ...], longest: int, fault: str) -> Size:
    if not all(isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= longest for v in sides):
        raise ValueError(fault)
    return sides


def parse_ints(value: Any) -> tuple[int, ...]:
    """`"1,2,2"` or `[1, 2, 2]` as a tuple."""
    if isinstance(value, str):
        value = [as_number(v.strip(), int) for v in value.split(",") if v.strip()]
    elif not isinstance(value, (list, tuple)):
        value = [value]
    whole = [isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value]
    if not whole or not all(whole):
        raise ValueError("a list of positive whole numbers, such as 1,2,2")
    return tuple(value)


_UNITS = {"": 1, **{f"{p}b": 1000**k for k, p in enumerate("kmgt", 1)}}
_UNITS |= {p + end: 1024**k for k, p in enumerate("kmgt", 1) for end in ("", "ib")}


def parse_bytes(value: Any) -> int:
    """`8GiB`, `8G` (the same), `500MB` or a number of bytes."""
    text = str(value).strip().lower() if not isinstance(value, bool) else ""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", text)
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise ValueError("a size is a number of bytes, such as 8GiB, 500MB or 0")
    return int(float(match[1]) * unit)


def parse_color(value: Any) -> str:
    """Return a color name or `#rrggbb`, checked by Pillow."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(value)
    except (ValueError, AttributeError, TypeError):
        raise ValueError("a color is a name such as white, or #rrggbb") from None
    return str(value)


def parse_given(value: Any) -> str | None:
    """Return a path or a degradation; None for `nothing`."""
    if not isinstance(value, str):
        raise ValueError("a folder, a zip file or a degradation")
    return None if value == "nothing" else value


def parse_timesteps(value: Any) -> int | str:
    """Return a number of timesteps, or `all`."""
    if value == "all":
        return "all"
    number = as_number(value, int) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 2:
        raise ValueError("a number of timesteps, at least 2, or 'all'")
    return number


def parse_names(value: Any) -> tuple[str, ...]:
    """Return a name, or a list of names."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError("a name, or a list of names")
    return tuple(names)


def parse_settings(value: Any) -> tuple[str, ...]:
    """Return a NAME=VALUE, or a list of them."""
    settings = parse_names(value)
    if not all("=" in words[1:] for words in settings):
        raise ValueError("a name and a value, such as age=40")
    return settings


def parse_listed(value: Any) -> tuple[str, ...]:
    """`"a,b"`, or a list of such strings, as names without repeats."""
    names = [name.strip() for part in parse_names(value) for name in part.split(",")]
    if not names or not all(names):
        raise ValueError("names with commas between them, such as ddim,unipc")
    return tuple(dict.fromkeys(names))


def parse_augment(value: Any) -> tuple[str, ...] | None:
    """`"flip,shift"`, or a list of such strings, as names. `"none"` is (), and `"auto"` None."""
    names = [name.strip() for part in parse_names(value) for name in part.split(",")]
    alone = {"none", "auto"} & {*names}
    if not all(names) or (alone and len(names) > 1):
        raise ValueError("none, auto, or names such as flip,shift")
    return None if "auto" in alone else () if alone else tuple(dict.fromkeys(names))


def parse_scales(value: Any) -> tuple[float, ...]:
    """`"1,1.5"` or `[1, 1.5]` as numbers from 0 to 100."""
    scales = _floats(value)
    if not scales or not all(0 <= scale <= 100 for scale in scales):
        raise ValueError("numbers from 0 to 100, such as 1,1.5,2")
    return scales


def _floats(value: Any) -> tuple[float, ...]:
    """Return a number, a list of numbers or `"1,1.5"` as a tuple. Empty if any is not a number."""
    if isinstance(value, str):
        value = [as_number(word.strip(), float) for word in value.split(",")]
    elif not isinstance(value, (list, tuple)):
        value = [value]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        return ()
    return tuple(float(v) for v in value)


MOST_IMAGES = 10_000_000


def parse_range(value: Any) -> tuple[int, int]:
    """`"1000:2000"` or `[1000, 2000]`, from the first to before the second."""
    if isinstance(value, range) and value.step == 1:
        value = value.start, value.stop
    ends = value.split(":") if isinstance(value, str) else value
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        raise ValueError("the first and the one after the last, such as 1000:2000")
    start, stop = (as_number(end, int) if isinstance(end, str) else end for end in ends)
    if type(start) is not int or type(stop) is not int:
        raise ValueError("two whole numbers, such as 1000:2000")
    if not 0 <= start < stop <= 10**12 or stop - start > MOST_IMAGES:
        raise ValueError(f"rising numbers from 0 on, of at most {MOST_IMAGES:,} images")
    return start, stop


def parse_times(value: Any) -> tuple[float, ...]:
    """`[999, 640.5, 80]`: the times of a sampler, falling, none below 0."""
    times = _floats(value)
    if not times or times[-1] < 0 or not all(t > s for t, s in pairwise(times)):
        raise ValueError("falling numbers, none below 0, such as 999,640.5,80")
    return times


def parse_file(value: Any) -> str:
    """Return the path of an existing file."""
    path = Path(value)
    if path.is_dir():
        raise ValueError("this is a folder; name a file in it")
    if not path.is_file():
        raise ValueError("no such file")
    return str(value)


def parse_license(value: Any) -> str:
    """Return the name of a license, as in the hub's list."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,40}", value):
        raise ValueError("a license is a name in small letters, such as mit or cc-by-4.0")
    return value


MOST_BETAS = 100_000
BETAS_BYTES = 10_000_000
"""The largest file of betas."""


def parse_betas(value: Any) -> tuple[float, ...]:
    """Return a list of numbers in (0, 1], or the path of a text file of them.

    The file is a JSON list, or numbers between commas, blanks and line ends.

    Raises:
        ValueError: not 2 to 100,000 such numbers, or a file that cannot be read. Says the line.
    """
    if isinstance(value, str):
        given = _read_betas(value)
    elif isinstance(value, (list, tuple)):
        given = [(f"entry {i}", number) for i, number in enumerate(value, 1)]
    else:
        raise ValueError("a file of numbers, or a list of them")
    for where, beta in given:
        if not isinstance(beta, (int, float)) or isinstance(beta, bool):
            raise ValueError(f"{where}: {shorten_repr(beta)} is not a number")
        if not 0 < beta <= 1:
            raise ValueError(f"{where}: a beta must be in (0, 1], not {shorten_repr(beta)}")
    if not 2 <= len(given) <= MOST_BETAS:
        raise ValueError(f"2 to {MOST_BETAS:,} betas, not {len(given):,}")
    return tuple(float(beta) for _, beta in given)


def _read_betas(path: str) -> list[tuple[str, Any]]:
    """Return the entries of a file of betas, each with its line or index."""
    try:
        data = read_bounded(path, BETAS_BYTES)
    except OSError as error:
        raise ValueError(error.strerror) from error
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return [(f"entry {i}", number) for i, number in enumerate(json.loads(text), 1)]
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("a list within a list") from error
    words = (
        (f"line {i}", word)
        for i, line in enumerate(text.splitlines(), 1)
        for word in line.replace(",", " ").split()
    )
    return [(where, as_number(word, float)) for where, word in words]


def to_plain(value: Any) -> Any:
    """Values of NumPy and PyTorch, alone and in sequences and mappings, as Python's own."""
    if isinstance(value, Mapping):
        return {name: to_plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_plain, value)) if type(value) in (list, tuple) else value
    return value.tolist() if hasattr(value, "tolist") else value


def as_number(word: str, kind: Callable[[str], float]) -> float | str:
    """Return a word as a number, or unchanged if it is none. Digits are 0 to 9."""
    try:
        return kind(word) if word.isascii() else word
    except ValueError:
        return word


def parse_interval(value: Any) -> tuple[float, float]:
    """`"0.3,3"` or `[0.3, 3]` as two increasing numbers, at least 0."""
    ends = _floats(value)
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] < math.inf:
        raise ValueError("two increasing numbers, such as 0.3,3")
    return ends[0], ends[1]


VECTOR_FILES, LARGEST_VECTORS = (".npz", ".npy"), 2**33
"""Extensions of files of vectors, .npz with names or .npy with a vector per row, and the most bytes
that one unpacks to."""


def parse_vectors(value: Any) -> tuple[tuple[float, ...], ...]:
    """Return the vectors of a file, or of a list or array of numbers.

    Raises:
        ValueError: they are not finite vectors of one size.
    """
    import numpy as np

    vectors = read_vectors(value)[1] if isinstance(value, str) else np.atleast_2d(value)
    if vectors.dtype.kind not in "biuf" or vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite numbers, (D,) or (N, D)")
    return tuple(map(tuple, vectors.tolist()))


def read_vectors(path: str | Path) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    """Read the names of a file, none of a .npy, and its vectors (N, entries).

    A .npz has the vector of each name, or the arrays `names` and `vectors`.

    Raises:
        ValueError: the file cannot be read, or its vectors have different sizes.
    """
    import numpy as np

    try:
        with open_regular_file(path) as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                arrays = {"vectors": arrays}
            elif sum(member.file_size for member in arrays.zip.infolist()) > LARGEST_VECTORS:
                raise ValueError
            arrays = dict(arrays)
    except Exception as error:  # a header is text of any kind
        reason = getattr(error, "strerror", None) or "it is not a .npz or .npy file of numbers"
        raise ValueError(reason) from error
    names, rows = tuple(arrays), [*arrays.values()]
    if {*arrays} <= {"names", "vectors"} and "vectors" in arrays:
        names = tuple(arrays.get("names", np.array([])).astype(str).ravel().tolist())
        rows = [*np.atleast_2d(arrays["vectors"])]
    sizes = sorted({row.size for row in rows})
    if len(sizes) != 1 or not 0 < sizes[0] <= MOST_ENTRIES:
        listed = ", ".join(f"{size:,}" for size in sizes[:5]) or "none"
        raise ValueError(f"vectors must have one size, 1 to {MOST_ENTRIES:,} numbers, not {listed}")
    if len(names) not in (0, len(rows)):
        raise ValueError(f"{len(names):,} names for {len(rows):,} vectors")
    vectors = np.stack([row.ravel() for row in rows])
    if vectors.dtype.kind not in "biuf":
        raise ValueError(f"vectors must be numbers, not {vectors.dtype}")
    return names, vectors
