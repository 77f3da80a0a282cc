"""What long work says of itself while it runs: work yields these, a command renders them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from diffuse_cli.errors import DiffuseError

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


class Stop:
    """What may end work before its time. This one never does."""

    def __call__(self) -> DiffuseError | None:
        """The error to end with, once there is one."""
        return None

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the error is raised as soon as there is one."""
        return contextlib.nullcontext()


def until(stop: Stop, work: Work[T]) -> Work[T]:
    """Pass on the events and the result of `work`, which `stop` ends wherever it is."""
    while True:
        try:
            with stop.at_once():
                event = next(work)
        except StopIteration as ended:
            result: T = ended.value
            return result
        yield event
