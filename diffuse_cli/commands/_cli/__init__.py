"""Output for users: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar, cast

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.text import Text

from diffuse_cli.system import (
    DiffuseError,
    Notice,
    OutputError,
    Progress,
    Styled,
    Table,
    Work,
    finish,
    processes,
    replace_nonfinite,
    show,
)

T = TypeVar("T")

Report = tuple[dict[str, Any], list[str | Table]]
"""A result as the values of `--json`, and as lines and tables."""

FEW_PATHS = 4
"""Most paths that a terminal shows."""

PLAIN_SECONDS = 10.0
"""Least time between lines of progress without a terminal."""


class Console:
    """The output of a command.

    Args:
        quiet: nothing on stderr but errors.
        as_json: the result is one JSON object.
        debug: print the traceback of an error.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False, debug: bool = False) -> None:
        self.quiet, self.as_json, self.debug = quiet, as_json, debug
        # Without a terminal a message is one line; a terminal would break it within words.
        self._err = RichConsole(
            file=cast(TextIO, _SafeStream(sys.stderr)),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=not is_terminal(sys.stderr),
        )
        # FORCE_COLOR and the like ask for colors in a log, not for bars.
        self.live = is_terminal(self._err.file) and not self._err.is_dumb_terminal

    # -- stderr ------------------------------------------------------------------------------------

    def say(self, line: str | RenderableType, style: str = "") -> None:
        """Print a line on stderr unless quiet. Unprintable characters are escaped."""
        if not self.quiet:
            self._err.print(Text(show(line), style=style) if isinstance(line, str) else line)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(f"warning: {text}", style="yellow")

    def fail(self, error: DiffuseError) -> None:
        """Print a failure as one line, even when quiet, and with --json also as an object."""
        if self.as_json and processes.rank() == 0:
            with contextlib.suppress(OutputError):
                self.write([json.dumps({"error": error.to_dict()})])
        line = " ".join(f"diffuse: {error}".split("\n"))
        self._err.print(Text(show(line), style="red"))
        if self.debug:
            self._err.print_exception()

    def follow(self, work: Work[T], describe: Callable[[Any], Any] | None = None) -> T:
        """Run `work` to its end, show its events, and return its result.

        `describe` turns any other event into `Progress`, `Notice` or None.
        """
        display: _Bars | _Lines = (
            _Bars(self._err) if self.live and not self.quiet else _Lines(self.say)
        )

        def render(event: Any) -> None:
            if describe and not isinstance(event, (Progress, Notice, Table)):
                event = describe(event)
            if isinstance(event, Progress):
                display(event)
            elif isinstance(event, Notice):
                (self.warn if event.warning else self.say)(event.text)
            elif isinstance(event, Table):
                for part in [_render_table(event)] if self.live else event.lines():
                    self.say(part)

        with display.bars:
            return finish(work, render)

    def follow_samples(self, work: Work[Any], out: str) -> None:
        """Run work that writes samples into a folder, and print their paths."""
        if (files := self.follow(work)) is not None:
            self.result(files.paths, {"out": out, **files.values})

    # -- stdout ------------------------------------------------------------------------------------

    def result(self, paths: Iterable[Path | str], values: dict[str, Any]) -> None:
        """Print the result: a path per line, or the JSON object.

        Instead of more than `FEW_PATHS`, a terminal shows their number and their folder.
        """
        lines = [*map(show, paths)]
        if len(lines) > FEW_PATHS and is_terminal(sys.stdout):
            lines = [f"{len(lines):,} files in {os.path.commonpath(lines) or os.curdir}"]
        self.show(values, lines)

    def show(self, values: dict[str, Any], parts: Iterable[str | Table]) -> None:
        """Print the JSON object, or lines and tables, with borders and styles on a terminal."""
        if self.as_json:
            self.write([json.dumps(replace_nonfinite(values))])
        elif is_terminal(sys.stdout):
            terminal = RichConsole(highlight=False, markup=False, emoji=False)
            with terminal.capture() as captured:
                for part in parts:
                    if isinstance(part, Table):
                        terminal.print(_render_table(part))
                    else:
                        wrapped = isinstance(part, Styled)  # sentences, not paths
                        terminal.print(_render_text(part), soft_wrap=not wrapped)
            self.write(captured.get().splitlines())
        else:
            for part in parts:
                self.write(part.lines() if isinstance(part, Table) else [part])

    def write(self, lines: Iterable[str]) -> None:
        """Print lines on stdout. A closed pipe is not an error."""
        try:
            for line in lines:
                print(line, flush=True)
        except BrokenPipeError:
            discard_output(sys.stdout)
        except OSError as error:
            discard_output(sys.stdout)
            text = f"cannot write to stdout: {error.strerror}"
            raise OutputError(text) from error


STYLES = {"title": "bold", "good": "green", "doubtful": "yellow", "bad": "red"}


def _render_text(text: str) -> Text:
    style = STYLES.get(text.style, "") if isinstance(text, Styled) else ""
    return Text(show(text), style=style)


def _render_table(table: Table) -> RenderableType:
    """Return a bordered table, which breaks long cells within their columns."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.ROUNDED, show_header=table.head, border_style="dim", header_style="bold")
    for k, cell in enumerate(table.rows[0]):
        grid.add_column(show(cell), style="" if table.head or k else "bold", overflow="fold")
    for row in table.rows[table.head :]:
        grid.add_row(*map(_render_text, row))
    return grid


class _SafeStream:
    """A stream that drops text when its pipe is closed or its disk is full."""

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
            discard_output(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether the stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # none, or a closed one
        return False


def discard_output(stream: TextIO) -> None:
    """Send further output to nowhere: else Python complains when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Bars:
    """A bar for each task on a terminal."""

    def __init__(self, console: RichConsole) -> None:
        # Imported here because it is slow and `--help` needs no bars.
        from rich import progress

        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=30),
            progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            get_time=time.monotonic,
        )
        self.tasks: dict[str, Any] = {}

    def __call__(self, event: Progress) -> None:
        if event.task not in self.tasks:
            self.tasks[event.task] = self.bars.add_task(event.task, total=event.total, detail="")
        task = self.tasks[event.task]
        self.bars.update(task, completed=event.done, total=event.total, detail=event.detail)
        if event.done >= event.total:
            self.bars.remove_task(self.tasks.pop(event.task))


class _Lines:
    """A plain line now and then, without a terminal."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.bars = say, contextlib.nullcontext()
        self.last: dict[str, float] = {}

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        began = event.task not in self.last
        if began:
            self.last[event.task] = now
        is_complete = event.done >= event.total
        if (is_complete and not began) or now - self.last[event.task] >= PLAIN_SECONDS:
            self.last[event.task] = now
            detail = f"  {event.detail}" if event.detail else ""
            self.say(f"{event.task} {event.done:,}/{event.total:,}{detail}")
        if is_complete:
            del self.last[event.task]


LONGEST, MOST_VALUES = 200, 20
"""The most characters of a text from a file to print, and values of a list."""


def format_value(value: Any, number: Callable[[float], str] = "{:.4g}".format) -> str:
    """Return a value as text, and a long list as its length."""
    if isinstance(value, list):
        if len(value) > MOST_VALUES:
            return f"{len(value):,} values"
        return f"[{', '.join(map(partial(format_value, number=number), value))}]"
    return number(value) if isinstance(value, float) else str(value)


def brief(text: str) -> str:
    """Return the start of a text from a file, escaped."""
    return show(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


# -- text -----------------------------------------------------------------------------------------

# Numbers and tables as text.


def format_speed(speed: float) -> str:
    """Return a number of samples per second, with two digits below 10."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def format_seconds(seconds: float) -> str:
    """`3:05`, or `1:03:05` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


Rows = list[tuple[str, str]]
"""Labels, each with a text."""


def label_lines(label: str, texts: Iterable[str]) -> Rows:
    """Return lines under one label, which is on the first."""
    return [("" if i else label, text) for i, text in enumerate(texts)]


def format_rest(count: int) -> str:
    """Return how many more there are."""
    return f" and {count:,} more" if count > 0 else ""
