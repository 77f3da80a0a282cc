"""What the functions share: options from keywords, data that is held, and notices in a log."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeAlias, TypeVar

from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.data import held
from diffuse_cli.errors import translated
from diffuse_cli.events import Notice, Progress, Work

T = TypeVar("T")

Data: TypeAlias = "str | os.PathLike[str] | Iterable[Any]"
"""DATA as the command line takes it, or samples: `data.sources.memory.held` says which."""

LOG = logging.getLogger("diffuse")
LOG.addHandler(logging.NullHandler())


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as options: None stands for what is not given, a path for its text."""
    return {
        name: str(value) if isinstance(value, PurePath) else value
        for name, value in options.items()
        if value is not None
    }


@contextlib.contextmanager
def named(data: Data) -> Iterator[str]:
    """The path of data, or the name under which samples can be opened inside the block."""
    if isinstance(data, (str, os.PathLike)):
        yield str(Path(data)) if isinstance(data, PurePath) else os.fspath(data)
        return
    with held(data) as name:
        yield name


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
