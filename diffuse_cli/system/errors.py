"""Expected failures, each kind with its exit code.

A command prints a failure as one line: the problem, with its path or option, and a hint for the
next step. Any other exception is a bug and ends with a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.registry import closest_name as closest_name
from diffuse_cli.core.registry import lookup as known
from diffuse_cli.core.registry import suggest as suggest

T = TypeVar("T")


class DiffuseError(Exception):
    """An expected failure.

    Attributes:
        message: the problem, with its path or option.
        hint: the next step.
    """

    exit_code = 1

    of_all = True
    """Whether all processes of a run have this error, so that only the first prints it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def mark_local(self) -> Self:
        """Mark this as an error of one process, which each process prints, and return it."""
        self.of_all = False
        return self

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        return f"{self.message}{'' if self.message.endswith(('.', '?', '!')) else '.'} {self.hint}"


class UsageError(DiffuseError):
    """A wrong option, value or configuration file."""

    exit_code = 2


class DataError(DiffuseError):
    """DATA or IMAGE is missing or unusable."""

    exit_code = 3


INSTALL = "in the folder of diffuse's source, run `pip install '.[{extra}]'`"
"""Advice for installing diffuse with an extra. No package index has it yet."""


def extra_package(
    name: str, extra: str, message: str, error: Callable[[str, str], DiffuseError] = DataError
) -> Any:
    """Import a package of one of our extras.

    Args:
        message: the purpose of the package, for the error.

    Raises:
        DiffuseError: the package, or a library that it loads, is not installed.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        raise error(message, f"Install it: {INSTALL.format(extra=extra)}") from None


class ModelFileError(DiffuseError):
    """A model file is missing or invalid."""

    exit_code = 4


class OutputError(DiffuseError):
    """An output already exists or cannot be written, or other I/O failed."""

    exit_code = 5


class DivergedError(DiffuseError):
    """The loss, the gradient or samples stopped being finite."""

    exit_code = 6


class BusyError(DiffuseError):
    """Another run holds the output."""

    exit_code = 75


class LostError(DiffuseError):
    """Another process of this run is gone."""

    exit_code = 76
    of_all = False


class Interrupted(DiffuseError):
    """SIGINT arrived."""

    exit_code = 130


class Terminated(DiffuseError):
    """SIGTERM arrived."""

    exit_code = 143


def flag(name: str) -> str:
    """Return an argument's name as the flag that sets it."""
    return "--" + name.replace("_", "-")


def to_usage_error(error: InvalidArgument, name: Callable[[str], str] = flag) -> UsageError:
    """Return an error of the core as a `UsageError` that names the flag of its argument."""
    return UsageError(error.message(name(error.argument)), error.hint)


@contextlib.contextmanager
def translate_errors(name: Callable[[str], str] = flag) -> Iterator[None]:
    """Turn an error of the core inside the block into a `UsageError`."""
    try:
        yield
    except InvalidArgument as error:
        raise to_usage_error(error, name) from error


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return `table[name]`.

    Args:
        what: the option that sets the name, for the error.

    Raises:
        UsageError: there is no such entry. The hint lists the names.
    """
    with translate_errors(lambda argument: argument):
        return known(table, name, what)
