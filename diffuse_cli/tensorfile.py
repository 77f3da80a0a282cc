"""Files of tensors: safetensors, written for equal bytes and read without trust.

The header is checked to its last entry before a tensor is allocated: its size, how much its JSON
would unfold to, and that the tensors lie one after another from the first byte to the last. The
file is opened once, so that what was checked is what is read.

Neither half is left to the safetensors library. It writes metadata in another order in every
process. It reads a mapped file, where a file that is cut short ends the process by SIGBUS, or with
`pread` into memory that is not aligned, on which the last bits of a sum may depend; aligned by a
copy, that takes 4 times as long.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from diffuse_cli import files

DTYPES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""The types that are written and read."""

LARGEST_HEADER = 8 * 2**20
"""Bytes. A network of 10,000 tensors, 100,000 betas (twice) and 20,000 class names need less."""

MOST_NODES, MOST_PARTS, DEEPEST = 100_000, 400_000, 32
"""Lists and objects in a header, commas and colons, and how deep lists lie in each other. A header
is small, and what it unfolds to need not be: an empty list of three bytes takes 70 in memory, and
a key of an object 200."""

MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its type, its shape and where its bytes begin in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself, checked: `metadata`, and the tensors by name."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]


# -- writing --------------------------------------------------------------------------------------


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A file with sorted names and metadata, so that equal content is equal bytes.

    Raises:
        OutputError: it cannot be written.
        ValueError: the header is too large to be read again.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    names = {dtype: name for name, dtype in DTYPES.items()}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > LARGEST_HEADER:
        raise ValueError(f"a header of {len(header):,} bytes, of which {LARGEST_HEADER:,} are read")
    with files.writing(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in sorted(tensors):
            file.write(_bytes(tensors[name].detach().cpu().contiguous()))


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


# -- reading --------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a whole file of tensors.
    """
    with opened(path) as file:
        return read_tensors(file, read_header(file))


def opened(path: Path) -> IO[bytes]:
    """A regular file, open for reading.

    Raises:
        OSError: it cannot be opened.
        ValueError: something else lies there, which is not waited for.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_header(file: IO[bytes]) -> Header:
    """The checked header of an open file, which is left where the data begins.

    Raises:
        ValueError: it is not a whole file of tensors.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= size - 8:
        raise ValueError("it is not a model file, or it is cut short")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header of {length:,} bytes is larger than any")
    values = parse(file.read(length))
    if not isinstance(values, dict):
        raise ValueError("it is not a model file")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    entries = {name: _entry(name, value) for name, value in values.items()}
    _check_layout(entries, size - 8 - length)
    return Header(metadata, entries)


def read_tensors(file: IO[bytes], header: Header) -> dict[str, Tensor]:
    """The tensors of a file whose header has just been read, each in memory of its own.

    Raises:
        ValueError: the file has become shorter.
    """
    tensors = {}
    for name, entry in sorted(header.entries.items(), key=lambda item: item[1].start):
        if entry.dtype not in DTYPES:
            raise ValueError(f"{files.show(name)[:200]} is of type {entry.dtype}")
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        into = _bytes(tensor)
        if _fill(file, into) < len(into):
            raise ValueError("it was cut short while it was read")
        tensors[name] = tensor
    return tensors


def _fill(file: IO[bytes], into: memoryview) -> int:
    done = 0
    while done < len(into) and (count := file.readinto(into[done:])):  # type: ignore[attr-defined]
        done += count
    return done


_MARK = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{},:]', re.DOTALL)
"""A text, which may hold anything, or a mark outside of texts. One that does not end is matched to
the end, and not tried again at each of its quotes."""


def parse(data: bytes) -> Any:
    """JSON from a stranger: no deeper, and of no more parts, than any honest file.

    Raises:
        ValueError: as said, or it is not JSON, or it names one thing twice.
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
            raise ValueError("its header is deeper, or of more parts, than any")
    return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("its header names one thing twice")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _entry(name: str, value: Any) -> Entry:
    """An entry of the right types. Whole numbers are ints, and not booleans.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{files.show(name)[:200]} is not described as a tensor")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in SIZES:
        raise ValueError(f"{files.show(name)[:200]} is of type {files.show(str(dtype))[:50]}")
    whole = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not whole or len(offsets) != 2 or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{files.show(name)[:200]} has no shape, or no place in the file")
    if offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
        raise ValueError(f"{files.show(name)[:200]} has not as many bytes as its shape says")
    return Entry(dtype, tuple(shape), offsets[0])


SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes of an element of the types that a file of tensors may name."""


def _check_layout(entries: Mapping[str, Entry], size: int) -> None:
    """Tensors lie one after another from the first byte to the last.

    Raises:
        ValueError: they overlap, or bytes belong to none.
    """
    end = 0
    for name, start, length in sorted(_places(entries), key=lambda place: place[1:]):
        if start != end:
            what = "overlaps another" if start < end else "lies behind bytes of none"
            raise ValueError(f"{files.show(name)[:200]} {what}")
        end += length
    if end != size:
        raise ValueError(f"it is cut short or has bytes to spare: {size:,} bytes, not {end:,}")


def _places(entries: Mapping[str, Entry]) -> Iterator[tuple[str, int, int]]:
    for name, entry in entries.items():
        yield name, entry.start, math.prod(entry.shape) * SIZES[entry.dtype]
