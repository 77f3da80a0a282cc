"""Several processes of a launcher: what the first decides for all, and what if one is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from diffuse_cli.system.devices import launched, rank
from diffuse_cli.system.errors import DiffuseError, LostError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def from_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What `work` returns on the first process, or its error; every process must call it."""
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    found: list[T | DiffuseError | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [work()]
        except DiffuseError as error:
            found = [error]
    [result] = broadcast_object_list(found)
    if isinstance(result, DiffuseError):
        raise result
    return result  # type: ignore[no-any-return]


def meet(accelerator: Accelerator) -> None:
    """Wait until every process is here."""
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()


_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Socket closed",
    "Broken pipe",
    "ailed to recv",
    "remote process exited",
)
"""What torch and its backends say where another process is gone."""


def lost(error: BaseException) -> LostError | None:
    """What to say if an error means that another process is gone; None for others."""
    if launched() < 2 or not isinstance(error, RuntimeError):
        return None
    if not (type(error).__name__.startswith("Dist") or any(text in str(error) for text in _GONE)):
        return None
    which = f"process {1 - rank()}" if launched() == 2 else "a process"
    return LostError(
        f"{which} of {launched()} is gone, and process {rank()} ends with it",
        "What is saved is whole: see what the other said, and start all again to go on",
    )
