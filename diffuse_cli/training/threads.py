"""With how many threads a run by --minutes computes: fewer where other programs keep cores busy.

PyTorch deals equal shares of the work to its threads and waits for the last: with one of two cores
half taken, two threads are slower than one (benchmarks/README.md). Results round differently with
another number, so it is chosen once, before the first step, and kept in the budget of a run, whose
plan depends on the clock anyway. A run of --steps computes with all threads.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from diffuse_cli.config import TrainConfig
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training.step_timer import Stopwatch

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
