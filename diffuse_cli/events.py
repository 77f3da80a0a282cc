"""What long work says of itself while it runs: work yields these, a command renders them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `task` ("reading", "sampling", ...) are finished."""

    task: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class Notice:
    """A sentence a user should read; `warning` where it may be a surprise."""

    text: str
    warning: bool = False


Event = Progress | Notice
Work = Generator[Any, None, T]
"""Work that yields events and returns a `T`."""


def finish(work: Work[T]) -> T:
    """Run `work` to its end, dropping its events, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result


def until(stop: Callable[[], Exception | None], work: Work[T]) -> Work[T]:
    """Pass on the events and the result of `work`; an error that `stop` returns ends it."""
    while True:
        try:
            event = next(work)
        except StopIteration as ended:
            result: T = ended.value
            return result
        error = stop()
        if error is not None:
            work.close()
            raise error
        yield event
