"""Several processes in one evaluation, with the same numbers as one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from diffuse_cli.draws import share

if TYPE_CHECKING:
    from accelerate import Accelerator

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
        from accelerate.utils import gather_object

        return list(gather_object([part]))

    def from_first(self, value: T) -> T:
        """The first process's value; each process must call it."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


ALONE = Team()
