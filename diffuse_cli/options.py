"""Options as the fields of frozen dataclasses: typed, explained and checked in one place.

A field carries its flag, help and range as metadata, so that an option is written once: the
command line, the checks, the documentation and the TOML all read it from there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diffuse_cli.errors import UsageError, suggest

Size = tuple[int, int]

OVERWRITE = "Replace what is there."
"""The help of an option that every command which writes has."""

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field is typed, explained and checked.

    Attributes:
        help: one sentence for `--help`.
        low, high: the range of a number, both ends included.
        table: what the command line offers as names, for example `schedules`.
        parse: makes the value from what was typed or read from TOML; raises ValueError.
        control: it cannot change the weights: not compared by `--resume`, not in the model file.
        place: of this machine or of this run, such as a path: in the TOML, not in the model file.
        argument: positional, without a flag.
        flag: the long flag where it is not the field's name, or a short form beside it.
        shown: the default as `--help` shows it, where it depends on machine or data.
    """

    help: str
    low: float | None = None
    high: float | None = None
    table: str = ""
    parse: Callable[[Any], Any] | None = None
    control: bool = False
    place: bool = False
    argument: bool = False
    flag: str = ""
    shown: str = ""
    metavar: str = ""


def option(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A dataclass field that is an option of the command line."""
    return field(default=default, metadata={"option": Option(help=help, **metadata)})


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
            raise ValueError(f"{where}: {_brief(beta)} is not a number")
        if not 0 < beta <= 1:
            raise ValueError(f"{where}: a beta lies in (0, 1], unlike {_brief(beta)}")
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


def _brief(value: Any) -> str:
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


def options(config: type | object) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The fields of a configuration that are options, with their metadata."""
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        if "option" in f.metadata:
            yield f, f.metadata["option"]


def flag_of(f: dataclasses.Field[Any]) -> str:
    """The long flag of a field, or its name in capitals where it is positional."""
    name: Option = f.metadata["option"]
    if name.argument:
        return f.name.upper()
    if name.flag.startswith("--"):
        return name.flag
    return "--" + f.name.replace("_", "-")


class Config:
    """Checks every number when a configuration is made."""

    def __post_init__(self) -> None:
        for f, spec in options(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if spec.parse is not None:
                object.__setattr__(self, f.name, _parse(f, spec, value))
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                self._check_number(f, spec, value)
            _check_type(f, value)
            if str(f.type).startswith("float") and isinstance(value, int):
                object.__setattr__(self, f.name, float(value))

    @staticmethod
    def _check_number(f: dataclasses.Field[Any], spec: Option, value: float) -> None:
        if isinstance(value, int) and value.bit_length() > 64:
            raise UsageError(f"{flag_of(f)} is too large")
        if not math.isfinite(value):
            raise UsageError(f"{flag_of(f)} must be a finite number, not {value}")
        if spec.low is not None and value < spec.low:
            raise UsageError(f"{flag_of(f)} must be at least {spec.low:g}, not {value:g}")
        if spec.high is not None and value > spec.high:
            raise UsageError(f"{flag_of(f)} must be at most {spec.high:g}, not {value:g}")


def _parse(f: dataclasses.Field[Any], spec: Option, value: Any) -> Any:
    if spec.parse is None or value is None:
        return value
    try:
        return spec.parse(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{flag_of(f)} {_brief(value)}: {error}") from error


def parsed(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the options of `kind` parsed, so that a file that one names is read once.

    Raises:
        UsageError: a value that cannot be parsed.
    """
    known = {f.name: (f, spec) for f, spec in options(kind)}
    return {k: _parse(*known[k], value) if k in known else value for k, value in values.items()}


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
}


def _check_type(f: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a TOML value of another type than the field's."""
    kind = str(f.type).removesuffix(" | None")
    allowed = _KINDS.get(kind)
    if allowed is None:
        return
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
        raise UsageError(f"{flag_of(f)} must be {kind}, not {value!r}")


# -- dictionaries and TOML ------------------------------------------------------------------------


def from_dict(kind: type[C], values: Mapping[str, Any], where: str = "configuration") -> C:
    """A configuration from a dictionary, refusing unknown keys and missing ones.

    Raises:
        UsageError: an unknown or missing key, or a value out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UsageError(f"{where}: there is no option '{name}'", suggest(str(name), fields))
    for name, f in fields.items():
        required = f.default is MISSING and f.default_factory is MISSING
        if required and name not in values:
            spec: Option | None = f.metadata.get("option")
            raise UsageError(f"{where}: {(spec and spec.metavar) or name.upper()} is missing")
    return kind(**values)


def to_dict(config: object, *, control: bool = True, places: bool = True) -> dict[str, Any]:
    """The set fields of a configuration as plain values, with or without control and paths."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        spec: Option | None = f.metadata.get("option")
        value = getattr(config, f.name)
        if value is None or (
            spec and ((spec.control and not control) or (spec.place and not places))
        ):
            continue
        if isinstance(value, tuple):
            value = list(value)
        result[f.name] = dict(value) if isinstance(value, Mapping) else value
    return result


def to_arguments(config: object) -> list[str]:
    """The arguments that make this configuration, without those that are at their defaults."""
    positional, flags = [], []
    for f, spec in options(config):
        value = getattr(config, f.name)
        if spec.argument:
            positional.append(str(value))
        elif value == f.default:
            continue
        elif isinstance(value, bool):
            flags.append(flag_of(f) if value else "--no-" + flag_of(f).removeprefix("--"))
        else:
            flag = spec.flag or flag_of(f)
            repeated = isinstance(value, tuple) and str(f.type).startswith("tuple[str")
            for each in value if repeated else [value]:
                joined = ",".join(map(str, each)) if isinstance(each, tuple) else str(each)
                flags += [flag, joined]
    return positional + flags


def to_toml(config: object, *, control: bool = False) -> str:
    """A configuration as TOML; what is not set is left out."""
    import tomli_w

    return tomli_w.dumps(to_dict(config, control=control))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file, with any line ends and with or without a byte order mark.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    from diffuse_cli.files import show

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except OSError as error:
        raise UsageError(f"--config {show(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {show(path)} is not TOML: {error}") from error
