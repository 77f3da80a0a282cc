"""Signals as errors: raised at once, or asked for between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from diffuse_cli.errors import DiffuseError, Interrupted, Terminated

ERRORS: dict[int, type[DiffuseError]] = {
    signal.SIGINT: Interrupted,
    signal.SIGTERM: Terminated,
}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in ERRORS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM raise their `DiffuseError`, so that files are tidied."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise ERRORS[number](WORDS[signal.Signals(number)])

    with _handling(handler):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], DiffuseError | None]]:
    """Inside the block a first signal is only noted, for the function given to be asked; a
    second one raises."""
    noted: list[DiffuseError] = []

    def handler(number: int, frame: FrameType | None) -> None:
        error = ERRORS[number](WORDS[signal.Signals(number)])
        if noted:
            raise error
        noted.append(error)

    with _handling(handler):
        yield lambda: noted[0] if noted else None
