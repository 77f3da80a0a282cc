"""Processes of a launcher, their decisions and failures, and the signals of a process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from diffuse_cli.system import DiffuseError, Interrupted, StopRequest, Terminated
from diffuse_cli.system.errors import LostError

if TYPE_CHECKING:
    from accelerate import Accelerator


T = TypeVar("T")

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that set how threads wait for each other."""

SPINS = 3000
"""Number of times that a waiting thread of GNU's OpenMP checks again before it sleeps. The default
is 300,000 (benchmarks/README.md)."""


def shorten_waits() -> None:
    """Let threads that wait for each other sleep soon. Call this before importing torch.

    PyTorch's threads check again and again while they wait. If other processes use the cores, this
    slows down the thread that they wait for. Settings of the user stay.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def rank() -> int:
    """Return the index of this process among the processes of a launcher, 0 without one."""
    return _read_number("RANK", 0) if _read_number("WORLD_SIZE", 1) > 1 else 0


def world_size() -> int:
    """Return the number of processes that a launcher started, 1 without one."""
    return _read_number("WORLD_SIZE", 1)


def _read_number(name: str, default: int) -> int:
    """Return the number in a variable of the environment, by default where it is empty."""
    return int(os.environ.get(name, "") or default)


def run_on_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run `work` on the first process, and return its result or raise its error on all.

    Every process must call this.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    results: list[T | DiffuseError | None] = [None]
    if accelerator.is_main_process:
        try:
            results = [work()]
        except DiffuseError as error:
            results = [error]
    [result] = broadcast_object_list(results)
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
"""Phrases in errors of torch and its backends that mean that another process has ended."""


def lost_process_error(error: BaseException) -> LostError | None:
    """Return the error to print if another process has ended, None for other errors."""
    if world_size() < 2 or not isinstance(error, RuntimeError):
        return None
    if not (type(error).__name__.startswith("Dist") or any(text in str(error) for text in _GONE)):
        return None
    which = f"process {1 - rank()}" if world_size() == 2 else "a process"
    hint = "See the error of the other process, then start all processes again to resume"
    return LostError(f"{which} of {world_size()} has ended, so process {rank()} ends too", hint)


# -- signals --------------------------------------------------------------------------------------

# SIGINT and SIGTERM as errors, raised at once or between two steps.

ERRORS = {signal.SIGINT: (Interrupted, "interrupted"), signal.SIGTERM: (Terminated, "terminated")}


class _SignalRaised(BaseException):
    """Exception of a signal, which passes every `except Exception`.

    Otherwise the code that is running would report a damaged image or a silent server.
    """

    def __init__(self, error: DiffuseError) -> None:
        self.error = error


@contextlib.contextmanager
def _convert_signals() -> Iterator[None]:
    """Raise the `DiffuseError` of a signal that arrived inside the block."""
    try:
        yield
    except _SignalRaised as struck:
        raise struck.error from None


def _error(number: int) -> DiffuseError:
    kind, words = ERRORS[signal.Signals(number)]
    return kind(words)


_quietly = False


def exit_on_signals() -> None:
    """End the process at once and silently at any later signal without a handler.

    The same holds for a signal that arrives while the error of an earlier signal is raised.
    """
    global _quietly
    _quietly = True
    for number in ERRORS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(Exception):  # the signal may have stopped a flush
        sys.stdout.flush()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(128 + number)


def _raise_signal(error: DiffuseError) -> NoReturn:
    """Raise the error of a signal at once."""
    if _quietly:
        exit_on_signals()
    raise _SignalRaised(error)


@contextlib.contextmanager
def _install_handler(
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
def raise_signals() -> Iterator[None]:
    """End the block at SIGINT or SIGTERM with its `DiffuseError`."""
    with _convert_signals(), _install_handler(lambda number, _: _raise_signal(_error(number))):
        yield


class PendingSignal(StopRequest):
    """A signal's error, for work that checks it between two steps."""

    def __init__(self) -> None:
        self._noted: DiffuseError | None = None
        self._urgent = False

    def __call__(self) -> DiffuseError | None:
        """Return the first signal's error, or None."""
        return self._noted

    @contextlib.contextmanager
    def raise_at_once(self) -> Iterator[None]:
        """Raise at once at a signal inside the block, for work that need not be finished."""
        self._urgent = True
        try:
            if self._noted:
                raise self._noted
            with _convert_signals():
                yield
        finally:
            self._urgent = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, or raise it inside `raise_at_once`. Raise a second signal."""
        first, error = self._noted is None, _error(number)
        if first:
            self._noted = error
        if self._urgent or not first:
            self._urgent = False
            _raise_signal(error)


@contextlib.contextmanager
def note_interrupts(pending: PendingSignal) -> Iterator[None]:
    """Note Ctrl-C inside the block, see `defer_signals`, unless the program has its own handler.

    SIGTERM stays with the program.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with _convert_signals(), _install_handler(pending.handle, (signal.SIGINT,)):
        yield


@contextlib.contextmanager
def defer_signals() -> Iterator[PendingSignal]:
    """Note the first signal inside the block, and raise at the second."""
    pending = PendingSignal()
    with _convert_signals(), _install_handler(pending.handle):
        yield pending
