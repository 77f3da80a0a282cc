"""Threads that read and decode ahead, with results in order and bounded memory."""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from diffuse_cli.data.decoding_workers import Reading, Result, decode_files
from diffuse_cli.data.sources import Entry
from diffuse_cli.data.worker import Gone, Worker

_FILES_A_CHUNK = 64
_BYTES_A_CHUNK = 2**18
_OUTPUT_A_CHUNK = 2**22
_USUAL_SIDE = 64

MANY_FILES = 8192
"""Fewer are decoded before processes have started."""
SMALL_FILE = 2**15
"""Larger files, on average, keep threads busy outside Python's lock."""
MOST_PROCESSES = 16
"""More decode faster than their results can be collected."""

Decode = Callable[[Reading, Sequence[Entry]], list[Result]]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(reading: Reading, entries: tuple[Entry, ...], workers: int) -> Iterator[Result]:
    """The results in the order of `entries`, a bounded number of chunks ahead."""
    if workers == 1:
        for chunk in _chunks(entries, reading):
            yield from decode_files(reading, chunk)
        return
    with contextlib.ExitStack() as stack:
        decode: Decode = decode_files
        if _many_small(entries):
            workers = min(workers, MOST_PROCESSES)
            decode = stack.enter_context(processes(reading, workers))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="diffuse-images")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        ahead: deque[Future[list[Result]]] = deque()
        for chunk in _chunks(entries, reading):
            ahead.append(pool.submit(decode, reading, chunk))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _many_small(entries: tuple[Entry, ...]) -> bool:
    total = sum(entry.size for entry in entries)
    return len(entries) >= MANY_FILES and total <= SMALL_FILE * len(entries)


@contextlib.contextmanager
def processes(reading: Reading, count: int) -> Iterator[Decode]:
    """A function that decodes in an idle process, or here if that process is gone, or could not
    open the source."""
    if not reading.source.portable:
        yield decode_files
        return
    idle: SimpleQueue[Worker] = SimpleQueue()

    def decode(reading: Reading, entries: Sequence[Entry]) -> list[Result]:
        worker = idle.get()
        try:
            return worker.decode(reading, entries)
        except Gone:
            return decode_files(reading, entries)
        finally:
            idle.put(worker)

    with contextlib.ExitStack() as stack:
        try:
            for _ in range(count):
                worker = Worker(reading)
                stack.callback(worker.close)
                idle.put(worker)
        except OSError:  # no more processes, or no memory
            if idle.empty():
                decode = decode_files
        yield decode


def _chunks(entries: tuple[Entry, ...], reading: Reading) -> Iterator[list[Entry]]:
    """Many small files or few large ones each: threads neither wait nor fill the memory."""
    size = reading.asked.size or (_USUAL_SIDE, _USUAL_SIDE)
    most = max(1, min(_FILES_A_CHUNK, _OUTPUT_A_CHUNK // (3 * math.prod(size))))
    chunk: list[Entry] = []
    total = 0
    for entry in entries:
        if chunk and (len(chunk) >= most or total + entry.size > _BYTES_A_CHUNK):
            yield chunk
            chunk, total = [], 0
        chunk.append(entry)
        total += entry.size
    if chunk:
        yield chunk
