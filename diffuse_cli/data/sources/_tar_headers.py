"""The members of a tar file by its headers: ustar, pax and GNU."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffuse_cli.data.sources.entries import plain_name
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import LARGEST_FILE, Unusable
from diffuse_cli.system.descriptors import open_to_read, read_at

LONGEST = 2**20
"""Longest header of a long name."""

_BLOCK = 512
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class Member(NamedTuple):
    """A file in a shard: its path there, where its bytes begin, how many they are, and the reason
    why it must not be read, if any."""

    path: str
    start: int
    size: int
    fault: str = ""


class Broken(Exception):
    """Not the header of a member."""


def collect(shard: Path, found: dict[str, Member]) -> str:
    """Add the members of a shard by their names, the last of a name, and say what is wrong with it:
    those before the damage are found."""
    try:
        file = open_to_read(shard)
    except FileNotFoundError:
        return reasons.VANISHED
    except OSError:
        return reasons.UNREADABLE
    try:
        for member in members_of(file):
            if name := plain_name(member.path):
                found[name] = member
    except Broken:
        return reasons.CORRUPT if os.fstat(file).st_size else reasons.EMPTY
    except OSError:
        return reasons.UNREADABLE
    finally:
        os.close(file)
    return ""


def members_of(file: int) -> Iterator[Member]:
    """The members of an open tar file, but folders, in the order in which they lie there.

    Raises:
        Broken: a header that is damaged, or a member that is cut.
    """
    at, end = 0, os.fstat(file).st_size
    if not end:
        raise Broken
    more: dict[str, str] = {}
    while at < end:
        try:
            # One header, without reading on: tarfile itself would take any length that one claims.
            info = tarfile.TarInfo.frombuf(read_at(file, _BLOCK, at), "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except (tarfile.TarError, ValueError) as error:
            raise Broken from error
        at += _BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            at += _BLOCK * _more_blocks(file, at)
        size, name = _number(more.get("size"), info.size), more.get("path", info.name)
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        if info.type in _LONG or info.type in _PAX:
            if not 0 <= info.size <= LONGEST:
                raise Broken
            data = _whole(file, at, info.size)
            if info.type in _PAX:
                more |= _records(data) if info.type != tarfile.XGLTYPE else {}
            else:
                text = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
                more |= {"path": text} if info.type == tarfile.GNUTYPE_LONGNAME else {}
            at += -(-info.size // _BLOCK) * _BLOCK
            continue
        if size < 0 or (has_data and at + size > end):
            raise Broken
        if not info.isdir():
            sparse = info.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse" in more
            plain = info.isreg() and not sparse
            yield Member(name, at, size, _fault(plain, size))
        at += -(-size // _BLOCK) * _BLOCK if has_data else 0
        more = {}
    if at > end:
        raise Broken


def _fault(plain: bool, size: int) -> str:
    if not plain:
        return reasons.IRREGULAR
    return reasons.TOO_LARGE if size > LARGEST_FILE else ""


def _more_blocks(file: int, at: int) -> int:
    """How many blocks of a sparse member's map follow its header."""
    count, block = 0, read_at(file, _BLOCK, at - _BLOCK)
    extended = len(block) == _BLOCK and block[482]
    while extended:
        block = _whole(file, at + count * _BLOCK, _BLOCK)
        extended, count = block[504], count + 1
    return count


def _number(text: str | None, otherwise: int) -> int:
    try:
        return int(text) if text is not None else otherwise
    except ValueError as error:
        raise Broken from error


def _records(data: bytes) -> dict[str, str]:
    """The records of a pax header that say where and what a member is: `path`, `size`, and
    `GNU.sparse` if any of that name is there."""
    found: dict[str, str] = {}
    while data and data[0]:
        length, space, _ = data[:20].partition(b" ")
        if not (space and length.isdigit() and len(length) + 2 < int(length) <= len(data)):
            raise Broken
        name, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        key = name.decode("utf-8", "replace")
        if key in ("path", "size"):
            found[key] = value.decode("utf-8", "surrogateescape")
        elif key.startswith("GNU.sparse."):
            found["GNU.sparse"] = ""
        data = data[int(length) :]
    return found


def _whole(file: int, start: int, size: int) -> bytes:
    try:
        return bytes_at(file, start, size)
    except Unusable as error:
        raise Broken from error


def bytes_at(file: int, start: int, size: int) -> bytes:
    """So many bytes of an open file.

    Raises:
        Unusable: it ends before.
    """
    data = read_at(file, size, start)
    while len(data) < size:
        more = read_at(file, size - len(data), start + len(data))
        if not more:
            raise Unusable(reasons.CORRUPT)
        data += more
    return data
