"""Training batches: samples and conditions at positions of the global batch, on the device.

If memory cannot hold all images, they are decoded ahead, in the order of use.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffuse_cli.core.augmentations import augment
from diffuse_cli.core.space import expand_batch, send
from diffuse_cli.data.decoding_threads import cores
from diffuse_cli.media import Indices
from diffuse_cli.system import Notice, Work, show
from diffuse_cli.system.memory import count_local_processes
from diffuse_cli.system.rng import permutation
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.training_data import LoadedImages, TrainingData

A_JOB = 16
"""Images that one worker decodes at a time."""

AHEAD, STEPS_AHEAD = 2**28, 16
"""The most bytes and the most steps to decode ahead. At least one step is."""

NAMED = 20
"""The most unreadable images to name."""


class Changes(NamedTuple):
    """Random changes of samples by --flip and --augment.

    Attributes:
        flip: whether to mirror each sample, (B,), or None without --flip.
        augmentations: names in `AUGMENTATIONS`.
        u: the random numbers of the augmentations, as for `augment`. None without any.
    """

    flip: Tensor | None
    augmentations: tuple[str, ...]
    u: Tensor | None

    def apply(self, x: Tensor, *, paired: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return changed samples (B, C, *size), and the augmentations' parameters, if any.

        Args:
            paired: whether x are paired samples, which only move.
        """
        if self.flip is not None:
            x = torch.where(expand_batch(self.flip, x), x.flip(-1), x)
        if self.u is None:
            return x, None
        return augment(x, self.augmentations, self.u, paired=paired)


class Feed:
    """Images of each step for this process, decoded ahead by workers.

    Attributes:
        waited: the seconds that steps have waited for images.
    """

    def __init__(
        self, data: TrainingData, order: Callable[[int, range], Indices], mine: range
    ) -> None:
        self._data, self._order, self._mine = data, order, mine
        self._streams = data.streams
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
            stream.ahead = {row: x for part in loaded for row, x in part.samples[k].items()}

    def _submit(self, step: int) -> list[Future[LoadedImages]]:
        indices, stream = self._order(step, self._mine), self._streams[0][0]
        parts = [indices[k : k + A_JOB] for k in range(0, len(indices), A_JOB)]
        return [stream.submit(self._data.load, part) for part in parts]


class Batches:
    """Training images in shuffled epochs, one after another."""

    def __init__(self, plan: Plan, batch_size: int, device: torch.device, mine: range) -> None:
        """Start to read ahead if the images are streamed.

        Args:
            mine: this process's positions of the batch.
        """
        self.plan, self.batch_size, self.device = plan, batch_size, device
        seed, n = plan.config.seed, len(plan.data.train)
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, n))
        self.feed: Feed | None = None
        if plan.data.streams:
            self.feed = Feed(plan.data, self._shuffle_indices, mine)

    def find_indices(self, step: int, positions: range) -> Indices:
        """Return the indices of the images at positions of the batch after `step` steps."""
        if self.feed is not None:
            return self.feed.find_indices(step, positions)
        return self._shuffle_indices(step, positions)

    def close(self) -> None:
        """Stop reading ahead."""
        if self.feed is not None:
            self.feed.close()

    def _shuffle_indices(self, step: int, positions: range) -> Indices:
        n = len(self.plan.data.train)
        places = np.arange(positions.start, positions.stop) + step * self.batch_size
        epochs, offsets = places // n, places % n
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            chosen[in_epoch] = self._order(int(epoch))[offsets[in_epoch]]
        return self.plan.data.train[chosen]

    def samples(self, indices: Indices) -> Tensor:
        """Return samples x_0 in the model's space, on the device."""
        stored = self._to_device(self.plan.data.images.stored[indices])
        return self.plan.blueprint.space.to_model(stored)

    def condition(
        self, indices: Indices, x0: Tensor, changes: Changes, step: int, positions: range
    ) -> dict[str, Tensor]:
        """Return the conditions of these samples, by the network's keywords.

        Args:
            x0: the changed samples.
            changes: their changes, for the paired samples.
            step, positions: the keys of the random numbers that degrade the samples.
        """
        images = self.plan.data.images
        labels = self._to_device(images.labels[indices])
        row = None if images.rows is None else self._to_device(images.rows[indices])
        given = self._conditioning_input(indices, x0, changes, step, positions)
        return self.plan.blueprint.conditions.make_keywords(labels, given, row)

    def _conditioning_input(
        self, indices: Indices, x0: Tensor, changes: Changes, step: int, positions: range
    ) -> Tensor | None:
        encoder, pairs = self.plan.encoder, self.plan.data.pairs
        if encoder is None:
            return None
        draws = encoder.draw_numbers(self.plan.config.seed, "given", step, positions, self.device)
        if pairs is None:
            conditioning = encoder.encode_samples(x0, draws)
        else:
            beside = encoder.to_model(self._to_device(pairs[indices]))
            beside, _ = changes.apply(beside, paired=True)
            conditioning = encoder.encode_observations(beside)
        return encoder.add_noise(conditioning, draws)

    def _to_device(self, values: npt.NDArray[Any]) -> Tensor:
        return send(torch.from_numpy(values), self.device)


class UnreadableImages:
    """Warnings of unreadable images, each once over all processes."""

    def __init__(self, data: TrainingData, accelerator: Accelerator) -> None:
        self._streams, self._accelerator = data.streams, accelerator
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
