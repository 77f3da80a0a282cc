"""Read, decode, hash and resize files, in threads or in worker processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diffuse_cli.data.sources import Entry, Source, open_source
from diffuse_cli.media import LARGE, MEDIA, Array, Large, Read, ReadSettings, Size, lock_large
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.memory import is_out_of_memory

LATER = "large"
"""Reason with which a worker leaves a sample to its parent process. Never shown."""


@dataclass(frozen=True)
class DecodingTask:
    """The source of files, the medium that decodes them, and the settings of every sample."""

    source: Source
    medium: str
    settings: ReadSettings


class DecodedSample(NamedTuple):
    """A file's usable sample."""

    entry: Entry
    read: Read


class SkippedFile(NamedTuple):
    """A file without a usable sample."""

    entry: Entry
    reason: str


Result = DecodedSample | SkippedFile


def result_to_json(result: Result) -> list[Any]:
    """Return a result as JSON values, without its file and its values."""
    if isinstance(result, SkippedFile):
        return [result.reason]
    values, digest, *remaining_fields = result.read
    return [digest.hex(), values.shape, values.dtype.str, *remaining_fields]


def result_from_json(
    entry: Entry, fields: Sequence[Any], numbers: Callable[[Size, np.dtype[Any]], Array]
) -> Result:
    """Return the result of a file from the JSON of `result_to_json`.

    Args:
        numbers: returns the values of a shape and a type.
    """
    if len(fields) == 1:
        return SkippedFile(entry, fields[0])
    digest, shape, dtype, *remaining_fields = lists_to_tuples(fields)
    values = numbers(shape, np.dtype(dtype))
    return DecodedSample(entry, Read(values, bytes.fromhex(digest), *remaining_fields))


def lists_to_tuples(values: Iterable[Any]) -> list[Any]:
    """Return JSON values with tuples instead of lists."""
    return [tuple(value) if isinstance(value, list) else value for value in values]


def make_blank(shape: Size, dtype: npt.DTypeLike) -> Array:
    """Return zeros with a shape and a type, which take no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def decode_files(reading: DecodingTask, entries: Iterable[Entry]) -> list[Result]:
    """Return the results in the order of `entries`. A file that fails gives a `SkippedFile`."""
    return [_decode_file(reading, entry) for entry in entries]


def _decode_file(reading: DecodingTask, entry: Entry) -> Result:
    try:
        if entry.fault:
            raise Unusable(entry.fault)
        with lock_large(entry.size > LARGE, reading.settings.shared):
            data = reading.source.read(entry)
            return DecodedSample(entry, MEDIA[reading.medium].read(data, reading.settings))
    except Unusable as error:
        return SkippedFile(entry, error.reason)
    except Large:
        return SkippedFile(entry, LATER)
    except FileNotFoundError:
        return SkippedFile(entry, reasons.VANISHED)
    except Exception as error:
        return SkippedFile(entry, reasons.MEMORY if is_out_of_memory(error) else reasons.UNREADABLE)


# -- worker ---------------------------------------------------------------------------------------

# A worker process that decodes samples for this one.
#
# Outside Pillow's decoders, Python runs one thread at a time. Decoding small files takes so little
# of the time that threads on many cores are no faster than on one.
#
# A request is a line of JSON. An answer is a line of JSON, then the bytes of the samples. A worker
# exits when its input ends, and so never outlives its parent.
#
# A `ProcessPoolExecutor` takes 1.8 times as long for 60,000 small PNGs. Its workers also outlive a
# killed parent, import modules from the current folder and run an unguarded script again.

_CODE = "from diffuse_cli.data.decoding_workers import main; main()"


class WorkerError(Exception):
    """The worker process has ended, or its answer is invalid."""


class Worker:
    """Process that decodes files of a `DecodingTask`.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, reading: DecodingTask) -> None:
        packages = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # Without -P a file `json.py` in the current folder would be imported.
            [sys.executable, "-P", "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C reaches only the parent
        )
        self._hello = [str(reading.source.path), reading.medium]

    def decode(self, reading: DecodingTask, entries: Sequence[Entry]) -> list[Result]:
        """Decode files in the worker, and large samples here, one by one.

        Raises:
            WorkerError: the worker has failed, and no file is decoded.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        settings = [*vars(dataclasses.replace(reading.settings, shared=True)).values()]
        files = [(e.name, e.size, e.key, e.fault) for e in entries]
        try:
            for line in filter(None, (self._hello, [settings, files])):
                stdin.write(json.dumps(line).encode() + b"\n")
            stdin.flush()
            self._hello = []
            results = list(_results(entries, stdout))
        except (OSError, ValueError, TypeError) as error:
            self.close()
            raise WorkerError from error
        late = iter(decode_files(reading, [r.entry for r in results if _is_late(r)]))
        return [next(late) if _is_late(result) else result for result in results]

    def close(self) -> None:
        """Kill the process and wait for it."""
        with contextlib.suppress(OSError), self._process:
            self._process.kill()


def _is_late(result: Result) -> bool:
    return isinstance(result, SkippedFile) and result.reason == LATER


def _results(entries: Sequence[Entry], answer: IO[bytes]) -> Iterator[Result]:
    """Yield the results in an answer. Raise `ValueError` if it is incomplete."""

    def numbers(shape: Size, dtype: np.dtype[Any]) -> Array:
        data = answer.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)

    for entry, fields in zip(entries, json.loads(answer.readline()), strict=True):
        yield result_from_json(entry, fields, numbers)


# -- in the worker --------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the input ends."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    hello = stdin.readline()
    if not hello:
        return
    path, medium = json.loads(hello)
    source = open_source(Path(path))
    MEDIA[medium].prepare()
    for line in stdin:
        settings, files = json.loads(line)
        reading = DecodingTask(source, medium, ReadSettings(*lists_to_tuples(settings)))
        results = decode_files(reading, (Entry(*fields) for fields in files))
        stdout.write(json.dumps([result_to_json(result) for result in results]).encode() + b"\n")
        for result in results:
            if isinstance(result, DecodedSample):
                stdout.write(result.read.values.tobytes())
        stdout.flush()


# -- pool -----------------------------------------------------------------------------------------

# Threads that read and decode ahead. Results stay in order, and memory is bounded.

FILES_A_CHUNK = 64
_BYTES_A_CHUNK = 2**18
_OUTPUT_A_CHUNK = 2**22
_USUAL_SIDE = 64

MANY_FILES = 8192
"""Below this number, files are decoded before processes would have started."""
SMALL_FILE = 2**15
"""Files above this average size, in bytes, keep threads busy outside Python's lock."""
MOST_PROCESSES = 16
"""With more processes, results arrive faster than they can be collected."""

Decode = Callable[[DecodingTask, Sequence[Entry]], list[Result]]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(
    reading: Callable[[], DecodingTask], entries: tuple[Entry, ...], workers: int
) -> Iterator[Result]:
    """Yield the results in the order of `entries`, decoded a bounded number of chunks ahead.

    Args:
        reading: returns the settings for the next chunk of files.
    """
    chunks = _chunks(entries, reading().settings)
    if workers == 1:
        for chunk in chunks:
            yield from decode_files(reading(), chunk)
        return
    with contextlib.ExitStack() as stack:
        decode: Decode = decode_files
        if _many_small(entries):
            workers = min(workers, MOST_PROCESSES)
            decode = stack.enter_context(start_workers(reading(), workers))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="diffuse-images")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        ahead: deque[Future[list[Result]]] = deque()
        for chunk in chunks:
            ahead.append(pool.submit(decode, reading(), chunk))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _many_small(entries: tuple[Entry, ...]) -> bool:
    total = sum(entry.size for entry in entries)
    return len(entries) >= MANY_FILES and total <= SMALL_FILE * len(entries)


@contextlib.contextmanager
def start_workers(reading: DecodingTask, count: int) -> Iterator[Decode]:
    """Yield a function that decodes files in an idle process.

    It decodes here if that process is gone or could not open the source.
    """
    if not reading.source.portable:
        yield decode_files
        return
    idle: SimpleQueue[Worker] = SimpleQueue()

    def decode(reading: DecodingTask, entries: Sequence[Entry]) -> list[Result]:
        worker = idle.get()
        try:
            return worker.decode(reading, entries)
        except WorkerError:
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
