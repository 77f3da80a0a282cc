"""Several processes of a launcher: what the first decides for all, and what if one is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from diffuse_cli.system.errors import DiffuseError, Interrupted, LostError, Terminated
from diffuse_cli.system.events import Stop

if TYPE_CHECKING:
    from accelerate import Accelerator


T = TypeVar("T")

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which users say how threads wait for each other."""

SPINS = 3000
"""How often a waiting thread looks again before it sleeps, of GNU's OpenMP, whose own number is
300,000 (benchmarks/README.md)."""


def wait_briefly() -> None:
    """Let threads that wait for each other sleep soon; to be called before torch is imported.

    A thread that looks again and again, as PyTorch's do, holds up the one that it waits for where
    another process has taken its core. A user's own setting stays.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def rank() -> int:
    """Return the index of this process among those of a launcher; 0 if it is alone."""
    return int(os.environ.get("RANK", "0") or 0)


def launched() -> int:
    """Return how many processes a launcher started, this one among them; 1 if there was none."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def from_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Return the result of `work` on the first process, or its error; each process must call it."""
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
    """Return the error to print if another process is gone; None for other errors."""
    if launched() < 2 or not isinstance(error, RuntimeError):
        return None
    if not (type(error).__name__.startswith("Dist") or any(text in str(error) for text in _GONE)):
        return None
    which = f"process {1 - rank()}" if launched() == 2 else "a process"
    return LostError(
        f"{which} of {launched()} is gone, and process {rank()} ends with it",
        "What is saved is whole: see what the other said, and start all again to go on",
    )


# -- signals --------------------------------------------------------------------------------------

# SIGINT and SIGTERM as errors, raised at once or between two steps.

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
def _handling(
    handler: Callable[[int, FrameType | None], None], numbers: Iterable[int] = tuple(ERRORS)
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, old)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """SIGINT and SIGTERM end the block with their `DiffuseError`."""
    with _as_error(), _handling(lambda number, _: _strike(_error(number))):
        yield


class Pending(Stop):
    """Notes a signal, for work that checks it between two steps."""

    def __init__(self) -> None:
        self._noted: DiffuseError | None = None
        self._urgent = False

    def __call__(self) -> DiffuseError | None:
        """Return the first signal's error, or None."""
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
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _as_error(), _handling(pending.handle, (signal.SIGINT,)):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Pending]:
    """Inside the block a first signal is only noted; a second one raises."""
    pending = Pending()
    with _as_error(), _handling(pending.handle):
        yield pending
