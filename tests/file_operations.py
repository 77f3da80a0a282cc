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


Act = Callable[[str, Path], object]
"""What is done for the name of an operation and its file."""


def seam(before: Act, after: Act = lambda name, path: None) -> Any:
    """Do something before and after each operation."""

    @contextlib.contextmanager
    def operation(name: str, path: Path) -> Iterator[None]:
        before(name, path)
        yield
        after(name, path)

    return operation


def watching(seen: list[tuple[str, str]]) -> Any:
    """A seam that notes each operation and the name of its file."""
    return seam(lambda name, path: seen.append((name, path.name)))


def noting(into: Path) -> Any:
    """A seam that notes the same as a line of a file."""

    def note(name: str, path: Path) -> None:
        with into.open("a") as file:
            file.write(f"{name} {path.name}\n")

    return seam(note)


def failing(stop: str, error: Exception, *, after: bool = False) -> Any:
    """A seam that raises before or after every operation of one name."""

    def fail(name: str, path: Path) -> None:
        if name == stop:
            raise error

    return seam(lambda name, path: None, fail) if after else seam(fail)


def at_moment(moment: int, act: Callable[[], Any], *, forever: bool = False) -> Any:
    """A seam that acts before operation k at 2k, and after it at 2k + 1, or from then on."""
    count = 0

    def act_now(name: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count > moment if forever else count == moment + 1:
            act()

    return seam(act_now, act_now)


def failing_at(moment: int, error: Exception, *, forever: bool = False) -> Any:
    """A seam that raises at a moment, or from then on."""

    def fail() -> None:
        raise error

    return at_moment(moment, fail, forever=forever)


def ends_at(moment: int) -> Any:
    """A seam that ends the process at a moment."""
    return at_moment(moment, lambda: os._exit(137))


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
