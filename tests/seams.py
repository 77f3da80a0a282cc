"""What tests put in the place of `files.operation`, and of work that takes long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffuse_cli.events import Work

FULL = OSError(28, "No space left on device")


def watching(seen: list[tuple[str, str]]):
    """A seam that notes each operation and the name of its file."""

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        seen.append((name, path.name))
        yield

    return operation


def failing(stop: str, error: Exception, *, after: bool = False):
    """A seam that raises before or after every operation of one name."""

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        if name == stop and not after:
            raise error
        yield
        if name == stop:
            raise error

    return operation


def giving(value: Any) -> Callable[..., Work[Any]]:
    """Work that is done at once, for what takes long."""

    def work(*arguments: Any, **options: Any) -> Work[Any]:
        yield from ()
        return value

    return work
