"""Decode training images ahead, in the order of use, if memory cannot hold all of them."""

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

from diffuse_cli.data.decoding_threads import cores
from diffuse_cli.data.store import find_stream
from diffuse_cli.data.stream import TRIES, Stream
from diffuse_cli.media import Indices
from diffuse_cli.system import Notice, Work, show
from diffuse_cli.system.memory import count_local_processes
from diffuse_cli.training.training_data import TrainingData

A_JOB = 16
"""Images that one worker decodes at a time."""

AHEAD, STEPS_AHEAD = 2**28, 16
"""The most bytes and the most steps to decode ahead. At least one step is."""

NAMED = 20
"""The most unreadable images to name."""


class LoadedImages(NamedTuple):
    """Indices of images that can be read, and the samples of each stream by row."""

    indices: Indices
    samples: list[dict[int, npt.NDArray[Any]]]


def find_streams(data: TrainingData) -> list[tuple[Stream, Indices | None]]:
    """Return the streams of samples, each with the row of every image. None for the images' own."""
    stream, pairs = find_stream(data.images.stored), data.pairs
    streams: list[tuple[Stream, Indices | None]] = [(stream, None)] if stream else []
    if pairs and (beside := find_stream(pairs.given.stored)):
        streams.append((beside, pairs.rows))
    return streams


@contextlib.contextmanager
def hold_streams(data: TrainingData) -> Iterator[None]:
    """Close the streams' workers at the end of the context."""
    try:
        yield
    finally:
        for stream, _ in find_streams(data):
            stream.close()


def find_readable(data: TrainingData, indices: Indices) -> Indices:
    """Return indices of images that can be read now: each image, or its successor."""
    streams = find_streams(data)
    if not streams:
        return indices
    loaded = load_images(data, indices)
    for (stream, _), samples in zip(streams, loaded.samples, strict=True):
        stream.remember(samples)
    return loaded.indices


def load_images(data: TrainingData, indices: Indices) -> LoadedImages:
    """Read images and their pairs, and replace each unreadable image by the next readable one.

    The next image comes from the same part: the training images or the held-out images.

    Raises:
        DataError: no image can be read.
    """
    streams = find_streams(data)
    loaded = LoadedImages(indices.copy(), [{} for _ in streams])
    missing, faulty = np.arange(len(indices)), streams[0][0]
    for _ in range(min(TRIES, len(data.images))):
        candidates = loaded.indices[missing]
        good = np.ones(len(missing), np.bool_)
        for (stream, rows), samples in zip(streams, loaded.samples, strict=True):
            places = candidates if rows is None else rows[candidates]
            samples |= stream.fetch(row for row in places.tolist() if row not in samples)
            readable = np.array([row in samples for row in places.tolist()], np.bool_)
            faulty = faulty if readable.all() else stream
            good &= readable
        missing = missing[~good]
        if len(missing) == 0:
            return loaded
        loaded.indices[missing] = [_successor(data, k) for k in loaded.indices[missing]]
    raise faulty.unreadable_error()


def _successor(data: TrainingData, index: int) -> int:
    for part in (data.train, data.held_out):
        place = int(np.searchsorted(part, index))
        if place < len(part) and part[place] == index:
            return int(part[(place + 1) % len(part)])
    raise LookupError(index)


class Feed:
    """Images of each step for this process, decoded ahead by workers.

    Attributes:
        waited: the seconds that steps have waited for images.
    """

    def __init__(
        self, data: TrainingData, order: Callable[[int, range], Indices], mine: range
    ) -> None:
        self._data, self._order, self._mine = data, order, mine
        self._streams = find_streams(data)
        self._queue: deque[tuple[int, list[Future[LoadedImages]]]] = deque()
        self._step, self._now = -1, np.zeros(0, np.int64)
        for stream, _ in self._streams:
            stream.workers = stream.workers or max(1, cores() // count_local_processes())
        image_bytes = sum(stream.bytes_each for stream, _ in self._streams)
        self._ahead = max(1, min(STEPS_AHEAD, AHEAD // (image_bytes * max(1, len(mine)))))
        self.waited, self._read = 0.0, (time.perf_counter(), 0.0)

    def find_indices(self, step: int, positions: range) -> Indices:
        """Return the images at positions of a step, and keep their samples ready."""
        if step != self._step:
            self._load_step(step)
        first = self._mine.start
        return self._now[positions.start - first : positions.stop - first]

    def waiting_fraction(self) -> float:
        """Return the fraction of time that steps waited for images since the last call."""
        (before, waited), now = self._read, time.perf_counter()
        self._read = now, self.waited
        return (self.waited - waited) / max(now - before, 1e-9)

    def close(self) -> None:
        """Stop decoding ahead."""
        while self._queue:
            for job in self._queue.popleft()[1]:
                job.cancel()

    def _load_step(self, step: int) -> None:
        if self._queue and self._queue[0][0] != step:  # not the next one
            self.close()
        for later in range(step + len(self._queue), step + self._ahead + 1):
            self._queue.append((later, self._submit(later)))
        began = time.perf_counter()
        loaded = [job.result() for job in self._queue.popleft()[1]]
        self.waited += time.perf_counter() - began
        self._step, self._now = step, np.concatenate([part.indices for part in loaded])
        for k, (stream, _) in enumerate(self._streams):
            stream.replace_ahead({row: x for part in loaded for row, x in part.samples[k].items()})

    def _submit(self, step: int) -> list[Future[LoadedImages]]:
        indices, stream = self._order(step, self._mine), self._streams[0][0]
        parts = [indices[k : k + A_JOB] for k in range(0, len(indices), A_JOB)]
        return [stream.submit(load_images, self._data, part) for part in parts]


class UnreadableImages:
    """Warnings of unreadable images, each once over all processes."""

    def __init__(self, data: TrainingData, accelerator: Accelerator) -> None:
        self._streams, self._accelerator = find_streams(data), accelerator
        self._named: set[tuple[str, str]] = set()

    def warn(self) -> Work[None]:
        """Warn of newly unreadable images. All processes must call it at the same time."""
        faults = [fault for stream, _ in self._streams for fault in stream.faults()]
        if self._streams and self._accelerator.num_processes > 1:
            faults = gather_object(faults)
        for name, reason in dict.fromkeys(faults):
            if (name, reason) in self._named or len(self._named) > NAMED:
                continue
            self._named.add((name, reason))
            if len(self._named) > NAMED:
                yield Notice("more images cannot be read and are not listed", warning=True)
                continue
            text = f"{show(name)}: {reason}: the next readable image is used instead"
            yield Notice(text, warning=True)
