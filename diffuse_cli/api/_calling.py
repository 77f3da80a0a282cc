"""What the functions share: options from keywords, data that is held, and notices in a log."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, TypeAlias, TypeVar

from PIL.Image import Image

from diffuse_cli.api._samples import Samples
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.data import held
from diffuse_cli.errors import translated
from diffuse_cli.events import Notice, Progress, Work

T = TypeVar("T")

Data: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"
"""DATA as the command line takes it, or samples: those that were drawn, or what
`data.sources.memory.held` takes."""

LOG = logging.getLogger("diffuse")
LOG.addHandler(logging.NullHandler())


@contextlib.contextmanager
def named(data: Data) -> Iterator[str]:
    """The path of data, or the name under which samples can be opened inside the block."""
    if isinstance(data, (str, os.PathLike)):
        yield os.fspath(data)
        return
    samples = [data] if isinstance(data, Image) else data
    with held([*samples.files()] if isinstance(samples, Samples) else samples) as name:
        yield name


HELD = ("given", "mask")
"""Options that may be samples in memory."""


def placed(options: Mapping[str, Any], stack: contextlib.ExitStack) -> dict[str, Any]:
    """Keywords as options: None stands for what is not given, a path for its text, and samples for
    the name under which they can be opened as long as the stack is open."""
    given = {name: value for name, value in options.items() if value is not None}
    named_ones = {name: stack.enter_context(named(given[name])) for name in HELD if name in given}
    return {
        **{name: str(v) if isinstance(v, PurePath) else v for name, v in given.items()},
        **named_ones,
    }


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Inside the block an error of the core is raised as a `UsageError`, as commands say it."""
    try:
        yield
    except InvalidArgument as error:
        raise translated(error) from error


def done(work: Work[T], progress: Callable[[Progress], object] | None = None) -> T:
    """The result of work, whose notices are logged; `progress` is told how far it is."""
    with translating():
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                result: T = end.value
                return result
            if progress is not None and isinstance(event, Progress):
                progress(event)
            if isinstance(event, Notice):
                LOG.log(logging.WARNING if event.warning else logging.INFO, event.text)
