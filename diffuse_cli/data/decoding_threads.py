"""Read, decode, hash and resize files in threads, which decode ahead while results stay in order.

Hashing, and decoding of all but the smallest files, run outside Python's lock.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from diffuse_cli.data.sources import Entry, Source
from diffuse_cli.media import MEDIA, Read, ReadSettings
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import lock_large
from diffuse_cli.system import is_out_of_memory

SMALL = 2**12
"""Mean bytes of files below which one thread is faster than several, which wait for Python's lock:
20,000 images of CIFAR-10 take one thread 1.9 s and two 2.4 s, on two cores."""

FILES_A_CHUNK = 64
_BYTES_A_CHUNK = 2**18
_OUTPUT_A_CHUNK = 2**22
_USUAL_SIDE = 64


@dataclass(frozen=True)
class DecodingTask:
    """The source of files, the medium that decodes them, and the settings of every sample."""

    source: Source
    medium: str
    settings: ReadSettings


class DecodedFile(NamedTuple):
    """File with its sample, or with the reason why it has none."""

    entry: Entry
    read: Read | None
    reason: str = ""


def decode_files(reading: DecodingTask, entries: Iterable[Entry]) -> list[DecodedFile]:
    """Return the results in the order of `entries`. A file that fails has a reason."""
    return [_decode_file(reading, entry) for entry in entries]


def _decode_file(reading: DecodingTask, entry: Entry) -> DecodedFile:
    reason = entry.fault
    try:
        if not reason:
            with lock_large(entry.size):
                data = reading.source.read(entry)
                return DecodedFile(entry, MEDIA[reading.medium].read(data, reading.settings))
    except reasons.Unusable as error:
        reason = error.reason
    except FileNotFoundError:
        reason = reasons.VANISHED
    except Exception as error:
        reason = reasons.MEMORY if is_out_of_memory(error) else reasons.UNREADABLE
    return DecodedFile(entry, None, reason)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(
    reading: Callable[[], DecodingTask], entries: tuple[Entry, ...], workers: int | None
) -> Iterator[DecodedFile]:
    """Yield the results in the order of `entries`, decoded a bounded number of chunks ahead.

    Args:
        reading: returns the settings for the next chunk of files.
        workers: threads, None for one per core.
    """
    workers = workers or cores()
    chunks = _chunks(entries, reading().settings)
    if workers == 1 or sum(entry.size for entry in entries) < SMALL * len(entries):
        for chunk in chunks:
            yield from decode_files(reading(), chunk)
        return
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="diffuse-images")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        ahead: deque[Future[list[DecodedFile]]] = deque()
        for chunk in chunks:
            ahead.append(pool.submit(decode_files, reading(), chunk))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _chunks(entries: tuple[Entry, ...], settings: ReadSettings) -> Iterator[list[Entry]]:
    """Yield chunks of many small or few large files: threads neither wait nor fill memory."""
    size = settings.size or (_USUAL_SIDE, _USUAL_SIDE)
    max_files = max(1, min(FILES_A_CHUNK, _OUTPUT_A_CHUNK // (3 * math.prod(size))))
    chunk: list[Entry] = []
    total = 0
    for entry in entries:
        if chunk and (len(chunk) >= max_files or total + entry.size > _BYTES_A_CHUNK):
            yield chunk
            chunk, total = [], 0
        chunk.append(entry)
        total += entry.size
    if chunk:
        yield chunk
