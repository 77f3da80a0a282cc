"""Each file is read, decoded, named by its content and brought to its size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from diffuse_cli.data.sources import Entry, Source
from diffuse_cli.media import LARGE, MEDIA, Asked, Large, Read, file_errors, freely, one_large
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.memory import out_of_memory

LATER = "large"
"""The reason by which a worker leaves a sample to the process that started it; never shown."""


@dataclass
class Reading:
    """The source of files, the medium that reads them, and what every sample becomes."""

    source: Source
    medium: str
    asked: Asked


class Decoded(NamedTuple):
    """A usable sample of a file."""

    entry: Entry
    read: Read


class Skipped(NamedTuple):
    """A file without a usable sample."""

    entry: Entry
    reason: str


Result = Decoded | Skipped


def decode_files(reading: Reading, entries: Iterable[Entry]) -> list[Result]:
    """The results in the order of `entries`; a file's fault is its result."""
    return [_decode_file(reading, entry) for entry in entries]


def _decode_file(reading: Reading, entry: Entry) -> Result:
    large = entry.size > LARGE
    try:
        if entry.fault:
            raise Unusable(entry.fault)
        if large and reading.asked.shared:
            raise Large
        with one_large if large else freely:
            data = reading.source.read(entry)
            return Decoded(entry, MEDIA[reading.medium].read(data, reading.asked))
    except Unusable as error:
        return Skipped(entry, error.reason)
    except Large:
        return Skipped(entry, LATER)
    except FileNotFoundError:
        return Skipped(entry, file_errors.VANISHED)
    except Exception as error:
        return Skipped(
            entry, file_errors.MEMORY if out_of_memory(error) else file_errors.UNREADABLE
        )
