"""Threads that read and decode: many files ahead, results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from diffuse_cli.data import reasons
from diffuse_cli.data.decoding import decode_with_mode
from diffuse_cli.data.pixels import Pixels, Size, digest, fit, to_pixels
from diffuse_cli.data.reasons import Unusable
from diffuse_cli.data.sources import Entry, Source

DEFAULT_SIDE = 64
"""Images of one size up to this keep it; all others become squares of it."""

_FILES_A_CHUNK = 64
_BYTES_A_CHUNK = 2**18
_OUTPUT_A_CHUNK = 2**22


@dataclass
class Plan:
    """What every image becomes. `size` is None while all images so far have one small size."""

    source: Source
    size: Size | None
    channels: int | None
    background: tuple[int, ...] | int


@dataclass(frozen=True, slots=True)
class Decoded:
    entry: Entry
    pixels: Pixels
    digest: bytes
    mode: str
    size: Size  # (width, height), before resizing


@dataclass(frozen=True, slots=True)
class Skipped:
    entry: Entry
    reason: str


Result = Decoded | Skipped


def decode_all(plan: Plan, entries: tuple[Entry, ...], workers: int) -> Iterator[Result]:
    """The results in the order of `entries`, a bounded number of chunks ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="diffuse-images")
    ahead: deque[Future[list[Result]]] = deque()
    try:
        for chunk in _chunks(entries, plan):
            ahead.append(pool.submit(_decode_chunk, plan, chunk))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(entries: tuple[Entry, ...], plan: Plan) -> Iterator[list[Entry]]:
    """Many small files or few large ones, so that threads neither wait nor hoard."""
    height, width = plan.size or (DEFAULT_SIDE, DEFAULT_SIDE)
    most = max(1, min(_FILES_A_CHUNK, _OUTPUT_A_CHUNK // (3 * height * width)))
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        if chunk and (len(chunk) >= most or size + entry.size > _BYTES_A_CHUNK):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += entry.size
    if chunk:
        yield chunk


def _decode_chunk(plan: Plan, entries: list[Entry]) -> list[Result]:
    return [_decode_entry(plan, entry) for entry in entries]


def _decode_entry(plan: Plan, entry: Entry) -> Result:
    try:
        if entry.fault:
            raise Unusable(entry.fault)
        image, mode = decode_with_mode(plan.source.read(entry), plan.background)
        size, name = image.size, digest(image)
        if plan.channels is not None:
            image = image.convert("L" if plan.channels == 1 else "RGB")
        target = plan.size
        if target is None and max(size) > DEFAULT_SIDE:
            target = (DEFAULT_SIDE, DEFAULT_SIDE)  # one such image decides it for all
        if target is not None:
            image = fit(image, target)
        return Decoded(entry, to_pixels(image), name, mode, size)
    except Unusable as error:
        return Skipped(entry, error.reason)
    except FileNotFoundError:
        return Skipped(entry, reasons.VANISHED)
    except MemoryError:
        return Skipped(entry, reasons.MEMORY)
    except Exception:
        return Skipped(entry, reasons.UNREADABLE)
