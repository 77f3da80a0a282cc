"""What tests put in the place of `files.operation`, and of work that takes long."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffuse_cli.system import files
from diffuse_cli.system.events import Work

FULL = OSError(28, "No space left on device")


def watching(seen: list[tuple[str, str]]):
    """A seam that notes each operation and the name of its file."""

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        seen.append((name, path.name))
        yield

    return operation


def noting(into: Path):
    """A seam that notes the same as a line of a file."""

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        with into.open("a") as file:
            file.write(f"{name} {path.name}\n")
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


def failing_at(moment: int, error: Exception, *, forever: bool = False):
    """A seam that raises before operation k at 2k, and after it at 2k + 1, or from then on."""
    count = 0

    def fail() -> None:
        nonlocal count
        count += 1
        if count > moment if forever else count == moment + 1:
            raise error

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        fail()
        yield
        fail()

    return operation


def ends_at(moment: int):
    """A seam that ends the process before operation k at 2k, and after it at 2k + 1."""
    count = 0

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        nonlocal count
        if count == moment:
            os._exit(137)
        yield
        if count + 1 == moment:
            os._exit(137)
        count += 2

    return operation


def killed_while(work: Callable[[], Any], operation: Any) -> bool:
    """Do `work` in a process of its own over a seam that may end it; whether it did."""
    process = os.fork()
    if not process:
        code = 1
        try:
            files.operation = operation
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 137)
    return code == 137


class Copies:
    """A seam that keeps what a kill leaves, which changes nothing on the disk: copies of `folder`
    before and after each operation, the moments of `ends_at`."""

    def __init__(self, folder: Path, into: Path) -> None:
        self.folder, self.into, self.count = folder, into, 0

    @contextlib.contextmanager
    def operation(self, name: str, path: Path) -> Iterator[None]:
        self.keep()
        yield
        self.keep()

    def keep(self) -> Path:
        """Make a copy."""
        copy = self.into / f"{self.count:05d}"
        shutil.copytree(self.folder, copy, copy_function=shutil.copyfile)
        self.count += 1
        return copy


def killed_at_each(work: Callable[[], Any], copies: Copies) -> list[Path]:
    """Do `work` once, in a process of its own; what a kill at each moment leaves, and its end."""
    assert not killed_while(lambda: [work(), copies.keep()], copies.operation)
    return sorted(copies.into.iterdir())


def giving(value: Any) -> Callable[..., Work[Any]]:
    """Work that is done at once, for what takes long."""

    def work(*arguments: Any, **options: Any) -> Work[Any]:
        yield from ()
        return value

    return work
