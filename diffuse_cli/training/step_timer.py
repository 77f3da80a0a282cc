"""The time of a training step, measured on a network that is thrown away."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config import TrainConfig
from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.training.memory_estimate import cost
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.previews import (
    PREVIEW_IMAGES,
    draw_by_default,
    passes_of_denoising,
    passes_of_step,
)
from diffuse_cli.training.trainer import Trainer

TASK = "measuring the time of a step"

WARM_UP, LEAST, SETTLED = 3, 5, 5.0
"""Steps that do not count, steps that do, and the seconds after which more of them add nothing."""

RATIO, TRIES = 4, 3
"""From one number of images that is tried to the next, and steps of each."""

PASSES, BESIDE = 2, 2
"""Steps of sampling that are timed, after one that is not, if all take at most 1/BESIDE of the time
that steps have."""

LARGE, PART = 2**28, 4
"""An image that keeps so many bytes for its backward pass is first tried at 1/PART of its sides."""


class Stopwatch:
    """Times steps until its seconds are spent.

    It begins with one image a process, or with a part of one: a whole step may take hours. What
    the time does not suffice for is extrapolated from the largest steps that it did. A network that
    compiles takes longer: it is measured as it will be trained.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, seconds: float) -> None:
        self.plan, self.accelerator, self.budget = plan, accelerator, seconds
        self.spent, self.taken, self.total = 0.0, 0, max(1, round(seconds))
        self._began = time.monotonic()
        self._known: list[tuple[int, float]] = []
        self._trainer: Trainer | None = None

    def seconds(self, config: TrainConfig, *, roughly: bool = False) -> Work[float]:
        """The time of a step of a complete configuration, on the slowest process; `roughly` leaves
        most of the seconds for others."""
        assert config.batch_size is not None
        plan = dataclasses.replace(self.plan, config=config)
        images, parts = config.batch_size, config.accumulation
        if not config.compile:
            yield from self._climb(plan, math.ceil(images / parts) - (not roughly))
            if roughly or not self._suffices(images, parts):
                return self._expected(images, parts)
        return (yield from self._time(plan, images, parts, WARM_UP + LEAST, SETTLED))

    def a_few(self, config: TrainConfig) -> Work[float]:
        """The time of a step now, by a few of them."""
        assert config.batch_size is not None
        plan = dataclasses.replace(self.plan, config=config)
        return (yield from self._time(plan, config.batch_size, config.accumulation, TRIES))

    def relearn(self, config: TrainConfig, seconds: float) -> None:
        """Forget what was measured, but that a step of `config` takes `seconds`."""
        assert config.batch_size is not None
        parts = config.accumulation
        self._known = [(math.ceil(config.batch_size / parts), seconds / parts)]

    def a_pass(self, plan: Plan, step: float) -> Work[float | None]:
        """The time in which an image passes through the network for a preview, on the slowest
        process, after steps of `step` seconds were timed; None if there is no time for it."""
        passes, times = passes_of_denoising(plan, PREVIEW_IMAGES), list[float]()
        guess = step * passes / passes_of_step(plan)
        trainer = self._trainer
        if trainer is None or (1 + PASSES) * guess > self.budget / BESIDE:
            return None
        drawings = draw_by_default(plan, trainer.ema_net, PREVIEW_IMAGES, trainer.device)
        while len(times) < 1 + PASSES:
            yield Progress(TASK, min(int(self.spent), self.total - 1), self.total)
            began = time.monotonic()
            if next(drawings, None) is None:
                break
            trainer.wait()
            times.append(time.monotonic() - began)
        return float(max(gather_object([median(times[1:] or times)]))) / passes

    def elapsed(self) -> float:
        """The seconds since it was made, on the slowest process: all must plan alike."""
        return float(max(gather_object([time.monotonic() - self._began])))

    def _climb(self, plan: Plan, most: int) -> Work[None]:
        """Time a few steps of one image a process, then of more and more, but of `most` at most."""
        size = self.accelerator.num_processes
        if not self._known:
            guess = yield from self._by_a_part(plan)
            if self.spent + 2 * guess > self.budget:
                self._known.append((size, guess))
        while size <= most:
            if self._suffices(size) and (not self._known or size > self._known[-1][0]):
                self._known.append((size, (yield from self._time(plan, size, 1, TRIES))))
            size *= RATIO

    def end(self) -> Work[None]:
        """Free the memory, if anything was measured."""
        if self._trainer is not None:
            self._trainer = None
            self.accelerator.free_memory()
        yield Progress(TASK, self.total, self.total)

    def _by_a_part(self, plan: Plan) -> Work[float]:
        """The time of a step of one image a process, guessed from a part of it; 0 if the images are
        small, or the network does not suit their part."""
        blueprint, size = plan.blueprint, plan.blueprint.space.size
        if cost(plan.config, blueprint, self.accelerator.device.type).image < LARGE:
            return 0.0
        small = tuple(side // PART for side in size)
        corner: Any = (..., *map(slice, small))
        images = dataclasses.replace(plan.images, stored=plan.images.stored[corner])
        pairs = plan.pairs.cut(corner) if plan.pairs else None
        space = dataclasses.replace(blueprint.space, size=small)
        blueprint = dataclasses.replace(blueprint, space=space)
        part = dataclasses.replace(plan, blueprint=blueprint, images=images, init=None, pairs=pairs)
        try:
            seconds = yield from self._time(part, self.accelerator.num_processes, 1, TRIES)
        except DiffuseError:  # a size that it cannot halve
            seconds = 0.0
        self._trainer = None
        return seconds * math.prod(size) / math.prod(small)

    def _suffices(self, images: int, parts: int = 1) -> bool:
        """Whether two such steps can still be taken; the first that is tried always is."""
        return not self._known or self.spent + 2 * self._expected(images, parts) <= self.budget

    def _expected(self, images: int, parts: int = 1) -> float:
        """The time of a step, extrapolated; another image takes at least half of the mean."""
        (before, early), (most, late) = [(0, 0.0), *self._known][-2:]
        each = late / most
        slope = min(max((late - early) / (most - before), each / 2), each)
        return parts * (late + slope * (images / parts - most))

    def _time(
        self, plan: Plan, images: int, parts: int, least: int, settled: float = 0.0
    ) -> Work[float]:
        """The median time of a step."""
        if self._trainer is None:
            self._trainer = Trainer(plan, self.accelerator)
        self._trainer.resize(images, parts)
        times: list[float] = []
        while len(times) < least or sum(times[WARM_UP:]) < settled:
            done = min(int(self.spent), self.total - 1)
            yield Progress(TASK, done, self.total, f"seconds, {images:,} images a step")
            began = time.monotonic()
            self._trainer.step(self.taken)
            self._trainer.wait()
            # Several processes must agree on the number of steps.
            times.append(float(max(gather_object([time.monotonic() - began]))))
            self.taken, self.spent = self.taken + 1, self.spent + times[-1]
            over = self.spent + times[-1] > self.budget and not plan.config.compile
            if over and (len(times) > 1 or times[0] > self.budget):
                break
        return median(times[min(WARM_UP, len(times) - 1) :])


# -- threads --------------------------------------------------------------------------------------

# With how many threads a run by --minutes computes: fewer where other programs keep cores busy.
#
# PyTorch deals equal shares of the work to its threads and waits for the last: with one of two
# cores half taken, two threads are slower than one (benchmarks/README.md). Results round
# differently with another number, so it is chosen once, before the first step, and kept in the
# budget of a run, whose plan depends on the clock anyway. A run of --steps computes with all
# threads.

OWN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which users say how many threads there are."""

OFTEN = 20.0
"""Stops a second, for each thread and one more, from which on a machine is called busy. A thread
that has its core is stopped some 16 times by the system itself; another program on one of two cores
adds a hundred (benchmarks/README.md)."""

FASTER = 0.9
"""Fewer threads are taken if a step takes at most this share of its time with all."""


class Stops:
    """How often the threads of this process are stopped so that another program can run."""

    def __init__(self) -> None:
        self._since, self._count = time.monotonic(), _stopped()

    def a_second(self) -> float:
        """Since it was made; 0 where the system does not say."""
        seconds = time.monotonic() - self._since
        return (_stopped() - self._count) / seconds if seconds > 0 else 0.0

    @property
    def busy(self) -> bool:
        """Whether other programs keep cores busy."""
        return self.a_second() >= OFTEN * (torch.get_num_threads() + 1)


def _stopped() -> int:
    """Involuntary context switches so far."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def open_to_choice(accelerator: Accelerator) -> bool:
    """Whether there are several threads on a processor, and no user or launcher said how many."""
    own = any(name in os.environ for name in OWN)
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return alone and not own and torch.get_num_threads() > 1


def fewer(every: int) -> list[int]:
    """The numbers of threads to try in place of `every`, falling."""
    return sorted({every - 1, 3 * every // 4, every // 2, 1} - {0, every}, reverse=True)


def fastest(
    watch: Stopwatch, config: TrainConfig, stops: Stops, accelerator: Accelerator
) -> Work[int | None]:
    """The number of threads with which a step is fastest, set from now on; None if it stays.

    Args:
        stops: counted while the watch timed steps: where nothing else runs, nothing is tried.
    """
    if not (open_to_choice(accelerator) and stops.busy):
        return None
    every = torch.get_num_threads()
    best, least = every, FASTER * (yield from watch.a_few(config))
    for count in fewer(every):
        torch.set_num_threads(count)
        seconds = yield from watch.a_few(config)
        if seconds < least:
            best, least = count, seconds
    torch.set_num_threads(best)
    if best == every:
        return None
    watch.relearn(config, least)
    yield Notice(
        f"other programs keep this machine busy: {best} of {every} threads are faster "
        f"(OMP_NUM_THREADS={every} keeps all)"
    )
    return best


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put the number of threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def go_on_with(threads: int | None, accelerator: Accelerator) -> None:
    """Compute with as many threads as a run began with, for the same results."""
    if threads is not None and open_to_choice(accelerator):
        torch.set_num_threads(threads)
