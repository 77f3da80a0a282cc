"""Events that long work yields while it runs, and a command renders."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from diffuse_cli.system.errors import DiffuseError

T = TypeVar("T")

DAY = 24 * 60 * 60
"""Seconds of a day."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `task` ("reading", "sampling", ...) are finished."""

    task: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class Notice:
    """A sentence for the user, a `warning` if it may be a surprise."""

    text: str
    warning: bool = False


class Styled(str):
    """Text with a style, for terminals.

    Attributes:
        style: one of "title", "good", "doubtful" and "bad".
    """

    style: str

    def __new__(cls, text: str, style: str) -> Styled:
        """Return the text."""
        styled = super().__new__(cls, text)
        styled.style = style
        return styled


@dataclass(frozen=True)
class Table:
    """Rows of cells for the user.

    Attributes:
        rows: the cells of each row, of which a terminal shows the style.
        head: whether the first row names the columns. Otherwise, the first column names the rows.
    """

    rows: Sequence[Sequence[str]]
    head: bool = True

    def lines(self) -> list[str]:
        """Return lines with aligned columns."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows]


Work = Generator[Any, None, T]
"""Work that yields events and returns a `T`."""


def finish(work: Work[T], note: Callable[[Any], object] = lambda event: None) -> T:
    """Run `work` to its end, pass each event to `note`, and return the result."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        note(event)


class StopRequest:
    """A request to end work early. The base class never does."""

    def __call__(self) -> DiffuseError | None:
        """Return the error to end with, or None."""
        return None

    def raise_at_once(self) -> contextlib.AbstractContextManager[None]:
        """Raise the error inside the block as soon as there is one."""
        return contextlib.nullcontext()

    def run(self, work: Work[T]) -> Work[T]:
        """Pass on the events and the result of `work`, which this may end at any point."""
        while True:
            try:
                with self.raise_at_once():
                    event = next(work)
            except StopIteration as ended:
                result: T = ended.value
                return result
            yield event


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun, such as `1 image` or `2 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def format_duration(seconds: float) -> str:
    """Return `12.3 minutes`, in hours from 90 minutes on, in days from 48 hours on."""
    for max_seconds, unit, name in ((90 * 60, 60, "minutes"), (2 * DAY, 3600, "hours")):
        if seconds <= max_seconds:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / DAY:,.0f} days"


def replace_nonfinite(value: Any) -> Any:
    """Return a value for JSON, with None for NaN and infinity."""
    if isinstance(value, dict):
        return {name: replace_nonfinite(field) for name, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nonfinite(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
