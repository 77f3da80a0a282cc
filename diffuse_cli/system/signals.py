"""SIGINT and SIGTERM as errors, raised at once or between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from diffuse_cli.system.errors import DiffuseError, Interrupted, Terminated
from diffuse_cli.system.events import Stop

ERRORS = {
    signal.SIGINT: (Interrupted, "interrupted"),
    signal.SIGTERM: (Terminated, "terminated"),
}


class _Struck(BaseException):
    """What a signal raises wherever the program is, past every `except Exception`: the image that
    is being decoded is not damaged, nor is the server silent that is being asked."""

    def __init__(self, error: DiffuseError) -> None:
        self.error = error


@contextlib.contextmanager
def _as_error() -> Iterator[None]:
    """Raise the `DiffuseError` of a signal that struck inside the block."""
    try:
        yield
    except _Struck as struck:
        raise struck.error from None


def _error(number: int) -> DiffuseError:
    kind, words = ERRORS[signal.Signals(number)]
    return kind(words)


_quietly = False


def leave_quietly() -> None:
    """End the process at once and without a word, from now on, at a signal that nothing handles or
    that comes while the error of an earlier one is on its way out."""
    global _quietly
    _quietly = True
    for number in ERRORS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(Exception):  # it may be what the signal has stopped
        sys.stdout.flush()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(128 + number)


def _strike(error: DiffuseError) -> NoReturn:
    """Raise the error of a signal, wherever the program is."""
    if _quietly:
        leave_quietly()
    raise _Struck(error)


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
            if signal.getsignal(number) is handler:
                signal.signal(number, old)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """SIGINT and SIGTERM end the block with their `DiffuseError`."""

    def handler(number: int, frame: FrameType | None) -> None:
        _strike(_error(number))

    with _as_error(), _handling(handler):
        yield


class Pending(Stop):
    """Notes a signal, for work that checks it between two steps."""

    def __init__(self) -> None:
        self._noted: DiffuseError | None = None
        self._urgent = False

    def __call__(self) -> DiffuseError | None:
        """The first signal's error, or None."""
        return self._noted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block signals raise at once: for work that need not be finished."""
        self._urgent = True
        try:
            if self._noted:
                raise self._noted
            with _as_error():
                yield
        finally:
            self._urgent = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, or raise it `at_once`; raise a second one."""
        first, error = self._noted is None, _error(number)
        if first:
            self._noted = error
        if self._urgent or not first:
            self._urgent = False
            _strike(error)


@contextlib.contextmanager
def noting(pending: Pending) -> Iterator[None]:
    """Inside the block Ctrl-C is noted as in `deferred`, unless the program does something else
    about it; SIGTERM is left to the program."""
    own = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not own:
        yield
        return
    signal.signal(signal.SIGINT, pending.handle)
    try:
        with _as_error():
            yield
    finally:
        signal.signal(signal.SIGINT, own)


@contextlib.contextmanager
def deferred() -> Iterator[Pending]:
    """Inside the block a first signal is only noted; a second one raises."""
    pending = Pending()
    with _as_error(), _handling(pending.handle):
        yield pending
