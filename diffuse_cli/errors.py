"""Every failure that a user can cause or meet, each with the exit code of its kind.

An expected failure is one line: what went wrong (naming the path or the option) and, as a hint,
what to do next. Anything that is not a `DiffuseError` is a bug and ends with a traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.errors import lookup as known
from diffuse_cli.core.errors import suggest as suggest

T = TypeVar("T")


class DiffuseError(Exception):
    """An expected failure: `message` says what and where, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith(('.', '?', '!')) else '.'} {self.hint}"


class UsageError(DiffuseError):
    """A wrong option, value or configuration file."""

    exit_code = 2


class DataError(DiffuseError):
    """DATA or IMAGE is missing, or holds nothing that can be used."""

    exit_code = 3


class ModelFileError(DiffuseError):
    """A model file is missing, or is not one."""

    exit_code = 4


class OutputError(DiffuseError):
    """An output exists already or cannot be written, or other input and output failed."""

    exit_code = 5


class DivergedError(DiffuseError):
    """The loss or the gradient stopped being finite."""

    exit_code = 6


class BusyError(DiffuseError):
    """Another run holds the output."""

    exit_code = 75


class Interrupted(DiffuseError):
    """SIGINT arrived."""

    exit_code = 130


class Terminated(DiffuseError):
    """SIGTERM arrived."""

    exit_code = 143


def flag(name: str) -> str:
    """An argument's name as the flag that sets it."""
    return "--" + name.replace("_", "-")


def translated(error: InvalidArgument, name: Callable[[str], str] = flag) -> UsageError:
    """What the core refused, with its argument under the name that people type."""
    return UsageError(error.message(name(error.argument)), error.hint)


@contextlib.contextmanager
def translating(name: Callable[[str], str] = flag) -> Iterator[None]:
    """Turn what the core refuses inside the block into a `UsageError`."""
    try:
        yield
    except InvalidArgument as error:
        raise translated(error, name) from error


def near(name: str, names: Iterable[str], alike: float = 0.5) -> str:
    """The name that is most like another, or an empty string where none is alike enough."""
    return next(iter(get_close_matches(name, list(names), n=1, cutoff=alike)), "")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or a `UsageError` that says which names there are.

    `what` is the option as typed, for example `--schedule`.
    """
    with translating(lambda argument: argument):
        return known(table, name, what)
