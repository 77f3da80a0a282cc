"""Processes that share the samples of an evaluation, with the same results as one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from diffuse_cli.system.rng import split_range

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Team of `size` processes, of which this is the `index`-th.

    Batches are never split, because rounding depends on the other images of a batch.
    """

    size: int = 1
    index: int = 0

    @classmethod
    def from_accelerator(cls, accelerator: Accelerator) -> Team:
        """Make the team of the processes that a launcher started."""
        return cls(accelerator.num_processes, accelerator.process_index)

    def share(self, n: int, batch_size: int) -> range:
        """Return this process's part of 0 ... n-1, in whole batches."""
        batches = split_range(-(-n // batch_size), self.size, self.index)
        return range(min(batches.start * batch_size, n), min(batches.stop * batch_size, n))

    def gather(self, part: T) -> list[T]:
        """Return every process's part, in order. All processes must call it."""
        if self.size == 1:
            return [part]
        return list(gather_object([part]))

    def from_first(self, value: T) -> T:
        """Return the first process's value. All processes must call it."""
        if self.size == 1:
            return value
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]

    def gather_samples(self, part: dict[int, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return the samples of all processes, (n, C, *size), in the order of their indices.

        All processes must call it.
        """
        samples = {i: sample for p in self.gather(part) for i, sample in p.items()}
        return np.stack([samples[i] for i in sorted(samples)])


ALONE = Team()
