"""What people and scripts see: progress and sentences on stderr, results alone on stdout."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.text import Text

from diffuse_cli.errors import DiffuseError, OutputError
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.files import show

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

T = TypeVar("T")

PLAIN_SECONDS = 10.0
"""Without a terminal, a line of progress at most so often."""


class Console:
    """Where a command speaks.

    Args:
        quiet: nothing on stderr but errors.
        as_json: the result is one JSON object.
        debug: errors come with their traceback.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False, debug: bool = False) -> None:
        self.quiet, self.as_json, self.debug = quiet, as_json, debug
        # Without a terminal a message is one line; a terminal would break it within words.
        self._err = RichConsole(
            file=cast(TextIO, _Forgiving(sys.stderr)),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=not is_terminal(sys.stderr),
        )
        # Variables such as FORCE_COLOR ask for colours, which is no reason for bars in a log.
        self.live = is_terminal(self._err.file) and not self._err.is_dumb_terminal

    # -- stderr ------------------------------------------------------------------------------------

    def say(self, line: str | RenderableType, style: str = "") -> None:
        """A line for people, unless quiet. What is not printable in it is escaped."""
        if not self.quiet:
            self._err.print(Text(show(line), style=style) if isinstance(line, str) else line)

    def warn(self, text: str) -> None:
        """A sentence that may be a surprise."""
        self.say(f"warning: {text}", style="yellow")

    def fail(self, error: DiffuseError) -> None:
        """The one line of an expected failure, also when quiet."""
        line = " ".join(f"diffuse: {error}".split("\n"))
        self._err.print(Text(show(line), style="red"))
        if self.debug:
            self._err.print_exception()

    def follow(self, work: Work[T], describe: Callable[[Any], Any] | None = None) -> T:
        """Run `work` to its end, showing its events, and return its result.

        `describe` turns an event that is neither `Progress` nor `Notice` into one of them, or
        into None.
        """
        with self._display() as display:
            while True:
                try:
                    event = next(work)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                if describe and not isinstance(event, (Progress, Notice)):
                    event = describe(event)
                if isinstance(event, Progress):
                    display(event)
                elif isinstance(event, Notice):
                    (self.warn if event.warning else self.say)(event.text)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Callable[[Progress], None]]:
        if self.quiet:
            yield lambda event: None
        elif self.live:
            with _bars(self._err) as bars:
                yield _Bars(bars)
        else:
            yield _Lines(self.say)

    # -- stdout ------------------------------------------------------------------------------------

    def result(self, paths: Iterable[Path | str], values: dict[str, Any]) -> None:
        """The result: one path a line, or the JSON object."""
        self.write([json.dumps(plain(values))] if self.as_json else [show(path) for path in paths])

    def show(self, values: dict[str, Any], lines: Iterable[str]) -> None:
        """A result that is more than paths: the JSON object, or lines for people."""
        if self.as_json:
            self.result([], values)
        else:
            self.write(lines)

    def write(self, lines: Iterable[str]) -> None:
        """Lines on stdout; a reader that has gone away is no error."""
        try:
            for line in lines:
                print(line, flush=True)
        except BrokenPipeError:
            discard(sys.stdout)
        except OSError as error:
            discard(sys.stdout)
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error


class _Forgiving:
    """A stream whose reader may go away, or whose disk may be full: work goes on in silence."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether someone reads along."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # none, or a closed one
        return False


def plain(value: Any) -> Any:
    """`value` for JSON, which has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def discard(stream: TextIO) -> None:
    """Send what is still written to nowhere: Python would complain when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def steady(stream: TextIO | None) -> None:
    """Let a stream escape what its encoding lacks instead of failing."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _bars(console: RichConsole) -> Bars:
    # A good part of what `--help` would import, which needs no bars.
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
        get_time=time.monotonic,
    )


class _Bars:
    """A bar for each task on a terminal."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def __call__(self, event: Progress) -> None:
        if event.task not in self.tasks:
            self.tasks[event.task] = self.bars.add_task(event.task, total=event.total, detail="")
        task = self.tasks[event.task]
        self.bars.update(task, completed=event.done, total=event.total, detail=event.detail)
        if event.done >= event.total:
            self.bars.remove_task(self.tasks.pop(event.task))


class _Lines:
    """A plain line now and then where there is no terminal."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.last: dict[str, float] = {}

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        began = event.task not in self.last
        if began:
            self.last[event.task] = now
        ended = event.done >= event.total
        if (ended and not began) or now - self.last[event.task] >= PLAIN_SECONDS:
            self.last[event.task] = now
            detail = f"  {event.detail}" if event.detail else ""
            self.say(f"{event.task} {event.done:,}/{event.total:,}{detail}")
        if ended:
            del self.last[event.task]
