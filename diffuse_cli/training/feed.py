"""The images of a training that are not all kept: decoded ahead, in the order that it uses them."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.data.decoding_workers import cores
from diffuse_cli.data.stream import TRIES, Stream, stream_of
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.files import show
from diffuse_cli.system.memory import processes_here
from diffuse_cli.training.training_data import TrainingData

Indices = npt.NDArray[np.int64]

A_JOB = 16
"""Images that one worker decodes at a time."""

AHEAD, STEPS_AHEAD = 2**28, 16
"""So many bytes are decoded ahead at most, of so many steps at most, but always a step."""

NAMED = 20
"""So many images that cannot be read any more are named."""


class LoadedImages(NamedTuple):
    """Images that can be read, in place of those that were asked for, and the samples of each
    stream by their rows."""

    indices: Indices
    samples: list[dict[int, npt.NDArray[Any]]]


def streams(data: TrainingData) -> list[tuple[Stream, Indices | None]]:
    """Return the streams of samples, each with the row of every image in it; None
    for the images' own."""
    own, pairs = stream_of(data.images.stored), data.pairs
    found: list[tuple[Stream, Indices | None]] = [(own, None)] if own else []
    if pairs and (beside := stream_of(pairs.given.stored)):
        found.append((beside, pairs.rows))
    return found


@contextlib.contextmanager
def feeding(data: TrainingData) -> Iterator[None]:
    """End the workers of the streams at the end."""
    try:
        yield
    finally:
        for stream, _ in streams(data):
            stream.close()


def readable(data: TrainingData, indices: Indices) -> Indices:
    """The images in whose place each can be used now: itself, or its successor."""
    found = streams(data)
    if not found:
        return indices
    loaded = load(data, indices)
    for (stream, _), samples in zip(found, loaded.samples, strict=True):
        stream.remember(samples)
    return loaded.indices


def load(data: TrainingData, indices: Indices) -> LoadedImages:
    """Read images and what lies beside them; in place of one that cannot be read its successor, the
    next that can, of those that are trained on if it is, and else of those held out.

    Raises:
        DataError: nothing can be read any more.
    """
    found = streams(data)
    loaded = LoadedImages(indices.copy(), [{} for _ in found])
    left = np.arange(len(indices))
    for _ in range(min(TRIES, len(data.images))):
        wanted = loaded.indices[left]
        good = np.ones(len(left), np.bool_)
        for (stream, rows), samples in zip(found, loaded.samples, strict=True):
            places = wanted if rows is None else rows[wanted]
            samples |= stream.fetch(row for row in places.tolist() if row not in samples)
            good &= np.array([row in samples for row in places.tolist()], np.bool_)
        left = left[~good]
        if len(left) == 0:
            return loaded
        loaded.indices[left] = [_successor(data, k) for k in loaded.indices[left]]
    raise found[0][0].all_gone()


def _successor(data: TrainingData, index: int) -> int:
    for own in (data.train, data.held_out):
        place = int(np.searchsorted(own, index))
        if place < len(own) and own[place] == index:
            return int(own[(place + 1) % len(own)])
    raise LookupError(index)


class Feed:
    """This process's images of each step, decoded ahead by workers.

    Attributes:
        waited: seconds that steps have waited for images.
    """

    def __init__(
        self, data: TrainingData, order: Callable[[int, range], Indices], mine: range
    ) -> None:
        self._data, self._order, self._mine = data, order, mine
        self._streams = streams(data)
        self._queue: deque[tuple[int, list[Future[LoadedImages]]]] = deque()
        self._step, self._now = -1, np.zeros(0, np.int64)
        for stream, _ in self._streams:
            stream.workers = stream.workers or max(1, cores() // processes_here())
        each = sum(stream.bytes_each for stream, _ in self._streams)
        self._ahead = max(1, min(STEPS_AHEAD, AHEAD // (each * max(1, len(mine)))))
        self.waited, self._read = 0.0, (time.perf_counter(), 0.0)

    def at(self, step: int, positions: range) -> Indices:
        """The images at positions of a step, which can then be looked up without waiting."""
        if step != self._step:
            self._take(step)
        first = self._mine.start
        return self._now[positions.start - first : positions.stop - first]

    def share(self) -> float:
        """The share of the time since this was asked last in which steps waited for images."""
        (before, waited), now = self._read, time.perf_counter()
        self._read = now, self.waited
        return (self.waited - waited) / max(now - before, 1e-9)

    def close(self) -> None:
        """Decode nothing more."""
        while self._queue:
            for job in self._queue.popleft()[1]:
                job.cancel()

    def _take(self, step: int) -> None:
        if self._queue and self._queue[0][0] != step:  # not the next one
            self.close()
        for later in range(step + len(self._queue), step + self._ahead + 1):
            self._queue.append((later, self._begun(later)))
        began = time.perf_counter()
        loaded = [job.result() for job in self._queue.popleft()[1]]
        self.waited += time.perf_counter() - began
        self._step, self._now = step, np.concatenate([part.indices for part in loaded])
        for k, (stream, _) in enumerate(self._streams):
            stream.hold({row: of for part in loaded for row, of in part.samples[k].items()})

    def _begun(self, step: int) -> list[Future[LoadedImages]]:
        wanted, stream = self._order(step, self._mine), self._streams[0][0]
        parts = [wanted[k : k + A_JOB] for k in range(0, len(wanted), A_JOB)]
        return [stream.submit(load, self._data, part) for part in parts]


class Faults:
    """Names the images that could not be read any more, each once on whichever process."""

    def __init__(self, data: TrainingData, accelerator: Accelerator) -> None:
        self._streams, self._accelerator = streams(data), accelerator
        self._named: set[tuple[str, str]] = set()

    def tell(self) -> Work[None]:
        """Warn of new ones; every process must call it at the same time."""
        found = [fault for stream, _ in self._streams for fault in stream.faults()]
        if self._streams and self._accelerator.num_processes > 1:
            found = gather_object(found)
        for name, reason in dict.fromkeys(found):
            if (name, reason) in self._named or len(self._named) > NAMED:
                continue
            self._named.add((name, reason))
            if len(self._named) > NAMED:
                yield Notice("more images cannot be read: they are not named", warning=True)
                continue
            text = f"{show(name)}: {reason}: the next image that can be read takes its place"
            yield Notice(text, warning=True)
