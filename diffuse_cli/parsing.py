"""What people type, and TOML says, as values: sizes, colours, lists, intervals, betas."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from diffuse_cli.errors import UsageError, suggest

Size = tuple[int, ...]


def parse_size(value: Any) -> Size:
    """`64`, `"64"`, `"48x64"` or `[48, 64]` as (height, width)."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        height, width = value
    elif isinstance(value, int) and not isinstance(value, bool):
        height = width = value
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", value)):
        height = int(match[1])
        width = int(match[2] or height)
    else:
        raise ValueError("a size is a number of pixels, or HEIGHTxWIDTH")
    if not all(isinstance(v, int) and 1 <= v <= 4096 for v in (height, width)):
        raise ValueError("a side is 1 to 4096 pixels")
    return height, width


def parse_ints(value: Any) -> tuple[int, ...]:
    """`"1,2,2"` or `[1, 2, 2]` as a tuple; an empty string is an empty tuple."""
    if isinstance(value, str):
        value = [int(v) for v in value.split(",") if v.strip()]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value):
        raise ValueError("a list of positive whole numbers, such as 1,2,2")
    return tuple(value)


def parse_color(value: Any) -> str:
    """A colour name or `#rrggbb`, checked by Pillow."""
    from PIL import ImageColor

    ImageColor.getrgb(value)
    return str(value)


def parse_timesteps(value: Any) -> int | str:
    """A number of timesteps, or `all`."""
    if value == "all":
        return "all"
    number = 0 if isinstance(value, (bool, float)) else int(value)
    if number < 2:
        raise ValueError("at least 2 timesteps, or 'all'")
    return number


def parse_names(value: Any) -> tuple[str, ...]:
    """A name, or a list of names."""
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a name, or a list of names")
    return names


def parse_listed(value: Any) -> tuple[str, ...]:
    """`"a,b"`, or a list of such, as names, each once."""
    names = [name.strip() for part in parse_names(value) for name in part.split(",")]
    if not all(names):
        raise ValueError("names with commas between them, such as ddim,unipc")
    return tuple(dict.fromkeys(names))


def parse_scales(value: Any) -> tuple[float, ...]:
    """`"1,1.5"` or `[1, 1.5]` as numbers from 0 to 100."""
    if isinstance(value, (int, float)):
        value = [value]
    scales = tuple(float(v) for v in (value.split(",") if isinstance(value, str) else value))
    if not scales or not all(0 <= scale <= 100 for scale in scales):
        raise ValueError("numbers from 0 to 100, such as 1,1.5,2")
    return scales


MODEL_WEIGHTS = ("ema", "raw")


def parse_weights(value: Any) -> tuple[str, ...]:
    """`ema` or `raw`, the path of a file, or a list of one of each.

    Raises:
        UsageError: neither a name nor a file, or two of a kind.
    """
    given = parse_names(value)
    for kind in given:
        if kind not in MODEL_WEIGHTS and not Path(kind).is_file():
            raise _no_weights(kind)
    named = [kind for kind in given if kind in MODEL_WEIGHTS]
    if len(named) > 1 or len(given) - len(named) > 1:
        raise ValueError("one of the model's weights and one file")
    return given


def _no_weights(kind: str) -> UsageError:
    """What is wrong with weights that are neither a name nor a file."""
    from diffuse_cli.files import show

    path = Path(kind)
    if path.is_dir():
        return UsageError(f"--weights {show(kind)} is a folder", "Name a file in it")
    if path.suffix or len(path.parts) > 1:
        return UsageError(f"--weights: no such file: {show(kind)}")
    hint = f"{suggest(kind, MODEL_WEIGHTS)} A file of feature weights can be named, too"
    return UsageError(f"--weights: there is no '{show(kind)}'", hint)


MOST_BETAS = 100_000
BETAS_BYTES = 10_000_000
"""A file of betas is not read further than this."""


def parse_betas(value: Any) -> tuple[float, ...]:
    """A list of numbers in (0, 1], or the path of a text file of them.

    The file is a JSON list, or numbers between commas, blanks and line ends.

    Raises:
        ValueError: not 2 to 100,000 such numbers, or a file that cannot be read; says the line.
    """
    if isinstance(value, str):
        given = _numbers_in(value)
    else:
        given = [(f"entry {i}", number) for i, number in enumerate(value, 1)]
    for where, beta in given:
        if not isinstance(beta, (int, float)) or isinstance(beta, bool):
            raise ValueError(f"{where}: {brief(beta)} is not a number")
        if not 0 < beta <= 1:
            raise ValueError(f"{where}: a beta lies in (0, 1], unlike {brief(beta)}")
    if not 2 <= len(given) <= MOST_BETAS:
        raise ValueError(f"2 to {MOST_BETAS:,} betas, not {len(given):,}")
    return tuple(float(beta) for _, beta in given)


def _numbers_in(path: str) -> list[tuple[str, Any]]:
    """What stands in a file of betas, each with its place."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(BETAS_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    if len(data) > BETAS_BYTES:
        raise ValueError(f"more than {BETAS_BYTES:,} bytes")
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
    return [(where, _number(word)) for where, word in words]


def _number(word: str) -> float | str:
    """A word as a number, or as it is."""
    try:
        return float(word)
    except ValueError:
        return word


def brief(value: Any) -> str:
    """A value in a message, of which the start is enough."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:60]} …"


def parse_interval(value: Any) -> tuple[float, float]:
    """`"0.3,3"` or `[0.3, 3]` as two rising numbers from 0 on."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    low, high = (float(part) for part in parts)
    if not 0 <= low < high < math.inf:
        raise ValueError("two rising numbers, such as 0.3,3")
    return low, high
