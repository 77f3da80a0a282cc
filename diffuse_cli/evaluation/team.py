"""Several processes in one evaluation, with the same numbers as one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from diffuse_cli.media import Array
from diffuse_cli.sampling.generation import Loaded, collect, draw
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system.events import Work
from diffuse_cli.system.rng import share

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """`size` processes, of which this is the `index`-th.

    Batches are never split, since rounding depends on what else is in a batch.
    """

    size: int = 1
    index: int = 0

    @classmethod
    def of(cls, accelerator: Accelerator) -> Team:
        """The processes that a launcher started."""
        return cls(accelerator.num_processes, accelerator.process_index)

    def share(self, n: int, batch_size: int) -> range:
        """This process's part of 0 ... n-1: from the start of a batch to the end of one."""
        batches = share(-(-n // batch_size), self.size, self.index)
        return range(min(batches.start * batch_size, n), min(batches.stop * batch_size, n))

    def gather(self, part: T) -> list[T]:
        """Every process's part, in their order; each process must call it."""
        if self.size == 1:
            return [part]
        return list(gather_object([part]))

    def from_first(self, value: T) -> T:
        """The first process's value; each process must call it."""
        if self.size == 1:
            return value
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


ALONE = Team()


def draw_share(
    settings: DrawSettings, loaded: Loaded, n: int, device: torch.device, team: Team, first: int = 0
) -> Work[dict[int, Array]]:
    """This process's share of n stored samples (C, *size), by index from `first` on."""
    own, space = team.share(n, settings.batch_size), loaded.space
    own = range(first + own.start, first + own.stop)
    mine: dict[int, Array] = {}
    drawings = draw(loaded.denoiser, settings, own, space=space, device=device)
    yield from collect(drawings, space, len(own), mine)
    return mine


def gathered(mine: dict[int, Array], n: int, team: Team, first: int = 0) -> Array:
    """The samples of all processes, (n, C, *size); every process must call it."""
    pixels = {i: image for part in team.gather(mine) for i, image in part.items()}
    return np.stack([pixels[i] for i in range(first, first + n)])
