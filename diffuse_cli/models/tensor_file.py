"""Safetensors files: equal content is written as equal bytes, and readers trust no file.

The whole header is checked before a tensor is allocated: its size, the size of its JSON in memory,
and that the tensors fill the file without gaps. The file is opened only once, so that it cannot
change between the check and the read.

Model files and checkpoints are read and written here, and the safetensors library only reads the
input of `convert`. The library writes metadata in a different order in every process. It maps
files, so that truncation kills the process with SIGBUS, or reads with `pread` into unaligned
memory, which may change the last bits of a sum. Copying to aligned memory takes 4 times as long.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from diffuse_cli.system import files, shorten, show
from diffuse_cli.system.descriptors import open_regular_file

DTYPES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""Types that are written and read."""

SIZES = {
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}
"""Bytes per element of every type that a file may name."""

LARGEST_HEADER = 8 * 2**20
"""Limit in bytes. 10,000 tensors, 100,000 betas (twice) and 20,000 class names take less."""

MOST_NODES, MOST_PARTS, DEEPEST = 100_000, 400_000, 32
"""Limits of lists and objects, of commas and colons, and of nesting in a header. A small header can
take much memory: an empty list of three bytes takes 70 bytes, and an object's key 200 bytes."""

MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorEntry:
    """Tensor in a file: its type, its shape and the offset of its bytes in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.start + math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True)
class Header:
    """Checked header: the metadata, and the tensors by name."""

    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and metadata, sorted by name.

    Raises:
        OutputError: the file cannot be written.
        ValueError: the header is too large for `read_header`.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    names = {dtype: name for name, dtype in DTYPES.items()}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        place = {"shape": list(tensor.shape), "data_offsets": [start, end]}
        entries[name] = {"dtype": names[tensor.dtype], **place}
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > LARGEST_HEADER:
        raise ValueError(f"a header of {len(header):,} bytes, over the limit of {LARGEST_HEADER:,}")
    with files.replace_file(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in sorted(tensors):
            file.write(_bytes(tensors[name].detach().cpu().contiguous()))


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name. Raises as `read_header` and `read_tensors`."""
    with open_regular_file(path) as file:
        return read_tensors(file, read_header(file))


def read_header(file: IO[bytes]) -> Header:
    """Return the checked header of an open file, and leave the file at the start of the data.

    Raises:
        ValueError: the file is damaged, or not safetensors.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= size - 8:
        raise ValueError("it has no safetensors header, or is truncated")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header of {length:,} bytes exceeds {LARGEST_HEADER:,}")
    values = parse_json(file.read(length))
    if not isinstance(values, dict):
        raise ValueError("its header is not a JSON object")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not all text")
    entries = {name: _entry(name, value) for name, value in values.items()}
    _check_layout(entries, size - 8 - length)
    return Header(metadata, entries)


def read_tensors(file: BufferedReader, header: Header) -> dict[str, Tensor]:
    """Return the tensors of a file whose header has just been read.

    Raises:
        ValueError: a type is not in `DTYPES`, or the file has become shorter.
    """
    tensors = {}
    for name, entry in sorted(header.entries.items(), key=lambda item: item[1].start):
        if entry.dtype not in DTYPES:
            raise ValueError(f"{show(name, 200)} has the unsupported type {entry.dtype}")
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        into = _bytes(tensor)
        if file.readinto(into) < len(into):
            raise ValueError("it was truncated while it was read")
        tensors[name] = tensor
    return tensors


_MARK = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{},:]', re.DOTALL)
"""Pattern of a string, or of a mark outside strings. A string without an end is matched to the end
of the data, and not tried again at each of its quotes."""


def parse_json(data: bytes) -> Any:
    """Parse untrusted JSON.

    Raises:
        ValueError: the JSON is invalid, exceeds a limit above, or repeats a key.
    """
    depth = nodes = parts = 0
    for mark in _MARK.finditer(data):
        kind = data[mark.start()]
        if kind in b"[{":
            depth, nodes = depth + 1, nodes + 1
        elif kind in b"]}":
            depth -= 1
        elif kind in b",:":
            parts += 1
        if depth > DEEPEST or nodes > MOST_NODES or parts > MOST_PARTS:
            raise ValueError("its header has too many parts or levels")
    return json.loads(data.decode(), object_pairs_hook=_reject_repeats, parse_constant=_reject_nan)


def _reject_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("its header repeats a key")
    return values


def _reject_nan(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _entry(name: str, value: Any) -> TensorEntry:
    """Return a checked entry. JSON's `true` does not count as a whole number."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{show(name, 200)} is not described as a tensor")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in SIZES:
        raise ValueError(f"{show(name, 200)} has the unknown type {show(str(dtype), 50)}")
    whole = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not whole or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{show(name, 200)} has an invalid shape or offset")
    entry = TensorEntry(dtype, tuple(shape), offsets[0])
    if offsets[1] != entry.end:
        raise ValueError(f"{show(name, 200)} has another size than its shape")
    return entry


def _check_layout(entries: Mapping[str, TensorEntry], size: int) -> None:
    """Refuse tensors that do not fill `size` bytes of data without gaps."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            fault = "overlaps another tensor" if entry.start < end else "follows unused bytes"
            raise ValueError(f"{show(name, 200)} {fault}")
        end = entry.end
    if end != size:
        raise ValueError(f"it is truncated or too long: {size:,} bytes of data, not {end:,}")


MALFORMED = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError,
    NotImplementedError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""Errors that Python raises for a malformed file."""


def describe_mismatch(
    expected: Mapping[str, str], actual: Mapping[str, str], called: Callable[[str], str] = shorten
) -> str:
    """Return the differences between expected and actual tensors, empty if there are none.

    Args:
        expected, actual: a text for each tensor by name.
        called: returns the name for a message.
    """
    problems = set()
    for name in expected.keys() | actual.keys():
        if name not in actual:
            problems.add(f"{called(name)} is missing")
        elif name not in expected:
            problems.add(f"{called(name)} is not of this network")
        elif actual[name] != expected[name]:
            problems.add(f"{called(name)} is {actual[name]}, not {expected[name]}")
    return format_first(problems, "; ")


NAMED = 5
"""The most problems that a message names."""


def format_first(texts: Collection[str], between: str = ", ") -> str:
    """Return the first texts in order, and the number of further texts."""
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return between.join(sorted(texts)[:NAMED]) + more
