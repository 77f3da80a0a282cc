"""The images of a training that are not all kept: decoded ahead, in the order that it uses them."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.core.gaussian_start import LowFrequencies, measure
from diffuse_cli.core.kernels import laid_out
from diffuse_cli.core.process import spread
from diffuse_cli.data.decoding_workers import cores
from diffuse_cli.data.stream import TRIES, Stream, stream_of
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.files import show
from diffuse_cli.system.memory import processes_here
from diffuse_cli.system.rng import permutation
from diffuse_cli.training.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


Indices = npt.NDArray[np.int64]

A_JOB = 16
"""Images that one worker decodes at a time."""

AHEAD, STEPS_AHEAD = 2**28, 16
"""So many bytes are decoded ahead at most, of so many steps at most, but always a step."""

NAMED = 20
"""So many images that cannot be read any more are named."""


class Loaded(NamedTuple):
    """Images that can be read, in place of those that were asked for, and the samples of each
    stream by their rows."""

    indices: Indices
    samples: list[dict[int, npt.NDArray[Any]]]


def _streams(plan: Plan) -> list[tuple[Stream, Indices | None]]:
    """The streams of a plan, each with the row of every image in it; None for the images' own."""
    own, pairs = stream_of(plan.images.stored), plan.pairs
    found: list[tuple[Stream, Indices | None]] = [(own, None)] if own else []
    if pairs and (beside := stream_of(pairs.given.stored)):
        found.append((beside, pairs.rows))
    return found


@contextlib.contextmanager
def feeding(plan: Plan) -> Iterator[None]:
    """End the workers of a plan's streams at the end."""
    try:
        yield
    finally:
        for stream, _ in _streams(plan):
            stream.close()


def streamed(plan: Plan) -> bool:
    """Whether images are read as they are used."""
    return bool(_streams(plan))


def readable(plan: Plan, indices: Indices) -> Indices:
    """The images in whose place each can be used now: itself, or its successor."""
    streams = _streams(plan)
    if not streams:
        return indices
    loaded = load(plan, indices)
    for (stream, _), samples in zip(streams, loaded.samples, strict=True):
        stream.remember(samples)
    return loaded.indices


def load(plan: Plan, indices: Indices) -> Loaded:
    """Read images and what lies beside them; in place of one that cannot be read its successor, the
    next that can, of those that are trained on if it is, and else of those held out.

    Raises:
        DataError: nothing can be read any more.
    """
    streams = _streams(plan)
    loaded = Loaded(indices.copy(), [{} for _ in streams])
    left = np.arange(len(indices))
    for _ in range(min(TRIES, len(plan.images))):
        wanted = loaded.indices[left]
        good = np.ones(len(left), np.bool_)
        for (stream, rows), samples in zip(streams, loaded.samples, strict=True):
            places = wanted if rows is None else rows[wanted]
            samples |= stream.fetch(row for row in places.tolist() if row not in samples)
            good &= np.array([row in samples for row in places.tolist()], np.bool_)
        left = left[~good]
        if len(left) == 0:
            return loaded
        loaded.indices[left] = [_successor(plan, k) for k in loaded.indices[left]]
    raise streams[0][0].all_gone()


def _successor(plan: Plan, index: int) -> int:
    for own in (plan.train, plan.held_out):
        place = int(np.searchsorted(own, index))
        if place < len(own) and own[place] == index:
            return int(own[(place + 1) % len(own)])
    raise LookupError(index)


class Feed:
    """This process's images of each step, decoded ahead by workers.

    Attributes:
        waited: seconds that steps have waited for images.
    """

    def __init__(self, plan: Plan, order: Callable[[int, range], Indices], mine: range) -> None:
        self._plan, self._order, self._mine = plan, order, mine
        self._streams = _streams(plan)
        self._queue: deque[tuple[int, list[Future[Loaded]]]] = deque()
        self._step, self._now = -1, np.zeros(0, np.int64)
        for stream, _ in self._streams:
            stream.workers = stream.workers or max(1, cores() // processes_here())
        each = sum(stream.bytes_each for stream, _ in self._streams)
        self._ahead = max(1, min(STEPS_AHEAD, AHEAD // (each * max(1, len(mine)))))
        self.waited, self._read = 0.0, (time.perf_counter(), 0.0)

    @classmethod
    def of(cls, plan: Plan, order: Callable[[int, range], Indices], mine: range) -> Feed | None:
        """A feed, if the plan has a stream."""
        return cls(plan, order, mine) if _streams(plan) else None

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

    def _begun(self, step: int) -> list[Future[Loaded]]:
        wanted, stream = self._order(step, self._mine), self._streams[0][0]
        parts = [wanted[k : k + A_JOB] for k in range(0, len(wanted), A_JOB)]
        return [stream.submit(load, self._plan, part) for part in parts]


class Faults:
    """Names the images that could not be read any more, each once on whichever process."""

    def __init__(self, plan: Plan, accelerator: Accelerator) -> None:
        self._streams, self._accelerator = _streams(plan), accelerator
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


# -- training batches -----------------------------------------------------------------------------

# The images of a plan at positions of the global batch, on the device.


def mirrored(x: Tensor, flip: Tensor) -> Tensor:
    """x (B, C, *size), mirrored where `flip` (B,) is true."""
    return torch.where(spread(flip, x), x.flip(-1), x)


class Batches:
    """Epochs of the training images, shuffled, one after another."""

    def __init__(
        self, plan: Plan, batch_size: int, device: torch.device, mine: range | None = None
    ) -> None:
        """`mine` are this process's positions of the batch; None for all."""
        self.plan, self.batch_size, self.device = plan, batch_size, device
        self._orders: dict[int, Indices] = {}
        self.feed = Feed.of(plan, self._ordered, range(batch_size) if mine is None else mine)

    def at(self, step: int, positions: range) -> Indices:
        """The images at positions of the batch after `step` steps, as indices into all."""
        if self.feed is not None:
            return self.feed.at(step, positions)
        return self._ordered(step, positions)

    def close(self) -> None:
        """Read nothing more ahead."""
        if self.feed is not None:
            self.feed.close()

    def _ordered(self, step: int, positions: range) -> Indices:
        n = len(self.plan.train)
        places = np.arange(positions.start, positions.stop) + step * self.batch_size
        epochs, offsets = places // n, places % n
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self._order(int(epoch), n)[offsets[here]]
        return self.plan.train[chosen]

    def _order(self, epoch: int, n: int) -> Indices:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = permutation(self.plan.config.seed, epoch, n)
        return self._orders[epoch]

    def samples(self, indices: Indices) -> Tensor:
        """Samples x_0, as the model sees them."""
        stored = self._moved(self.plan.images.stored[indices])
        return laid_out(self.plan.blueprint.space.to_model(stored))

    def condition(
        self, indices: Indices, x0: Tensor, flip: Tensor | None, step: int, positions: range
    ) -> dict[str, Tensor]:
        """The conditions of these samples, by keyword.

        Args:
            x0: the samples, mirrored already where `flip` (B,) says so.
            step, positions: what is drawn for them.
        """
        images = self.plan.images
        labels = self._moved(images.labels[indices])
        row = None if images.rows is None else self._moved(images.rows[indices])
        given = self._given(indices, x0, flip, step, positions)
        return self.plan.blueprint.conditions.told(labels, given, row)

    def _given(
        self, indices: Indices, x0: Tensor, flip: Tensor | None, step: int, positions: range
    ) -> Tensor | None:
        giver, pairs = self.plan.giver, self.plan.pairs
        if giver is None:
            return None
        draws = giver.draws(self.plan.config.seed, "given", step, positions, self.device)
        if pairs is None:
            told = giver.degraded(x0, draws)
        else:
            beside = giver.inputs.to_model(self._moved(pairs.beside(indices)))
            told = giver.observed(beside if flip is None else mirrored(beside, flip))
        return laid_out(giver.augmented(told, draws))

    def _moved(self, values: npt.NDArray[Any]) -> Tensor:
        """`values` on the device, without waiting for it."""
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


# -- low frequencies ------------------------------------------------------------------------------

# The low frequencies of what a model is trained on, for a Gaussian start of sampling.

MOST, STREAMED = 512, 64
"""The samples that are measured, and those of data that is read as it is used: of so many, the
deviation of the mean brightness is known to 3 % and 9 %."""

AT_ONCE = 2**22
"""Numbers that are measured at a time."""


def low_frequencies(plan: Plan) -> LowFrequencies | None:
    """Those of samples evenly spaced among the ones trained on; None for a model that is told
    something or distilled, which is not sampled from them."""
    if plan.blueprint.conditions or plan.teacher:
        return None
    most = min(STREAMED if streamed(plan) else MOST, len(plan.train))
    places = np.linspace(0, len(plan.train) - 1, most).round().astype(np.int64)
    return measure(_batches(plan, plan.train[places]))


def _batches(plan: Plan, indices: npt.NDArray[np.int64]) -> Iterator[torch.Tensor]:
    """These samples as the model sees them; with --flip mirrored ones too."""
    space = plan.blueprint.space
    each = max(1, AT_ONCE // math.prod(space.shape))
    for start in range(0, len(indices), each):
        chosen = readable(plan, indices[start : start + each])
        stored = np.ascontiguousarray(plan.images.stored[chosen])
        samples = space.to_model(torch.from_numpy(stored))
        yield samples
        if plan.config.flip:
            yield samples.flip(-1)
